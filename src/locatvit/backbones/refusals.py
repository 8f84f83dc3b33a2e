"""Models and parts of models that LocAt cannot go into, and why: what ``add_locat`` answers."""

from __future__ import annotations

_TOKENS_OF_ANOTHER_GRID = "its keys are of a coarser grid than its queries, and a patch's bias needs both on one grid"
_CHANNELS = "it attends among channels, where there are no distances between patches"
_LINEAR = "its attention is linear, so there are no logits of patch pairs to add a bias to"
_PADDED = "its attention is on padded sequences of patches with places of their own, not on one grid"
_TOWER = "it is the eye of a language model, which reads all of its tokens through an adapter of its own"
_CONVOLUTIONS = "its attention is one of its own on maps of features, beside convolutions"

REASONS: dict[str, str] = {
    "Cait": "its heads mix their logits and weights (talking heads), which leaves no place for one head's bias",
    "Xcit": _CHANNELS,
    "DaVit": "half of its attention is among channels, where there are no distances between patches",
    "ConVit": "its attention is a gated sum with a positional attention of its own, after the softmax",
    "MultiScaleVit": "it pools queries, keys and values to other grids inside the attention",
    "Levit": "its attention has keys narrower than its values, a learned bias of its own and convolutional projections",
    "LevitDistilled": "its attention has keys narrower than its values, a learned bias of its own and convolutions",
    "SwinTransformerV2": "its attention is by cosines with a learned temperature, on whose scale GAug's bias is not",
    "SwinTransformerV2Cr": "its attention is by cosines with a learned temperature, on whose scale GAug's bias is not",
    "EfficientFormer": _CONVOLUTIONS,
    "EfficientFormerV2": "its heads mix their logits and weights (talking heads), beside convolutions",
    "EfficientVit": _LINEAR,
    "EfficientVitLarge": _LINEAR,
    "EfficientVitMsra": "each head reads what the head before it gave (cascaded groups), on features of convolutions",
    "PyramidVisionTransformerV2": _TOKENS_OF_ANOTHER_GRID,
    "Twins": _TOKENS_OF_ANOTHER_GRID,
    "CoaT": _LINEAR,
    "CrossVit": "its tokens are of two grids at once, and the classes of one attend to the patches of the other",
    "TNT": "it attends among the pixels of a patch and among patches, in two attentions of each block",
    "VOLO": "its outlook attention predicts the weights of a neighbourhood and has no queries and keys",
    "Nest": "its tokens are in blocks of an image with one more axis, not timm's Attention on one grid",
    "MaxxVit": "its attention is over sparse grids and windows, beside convolutions, with biases of its own",
    "GlobalContextVit": "its queries in every other block are global ones, which stand at no place",
    "Hiera": "its tokens are sorted by mask units and its attention pools its queries to another grid",
    "HieraDet": "it pools its queries to another grid inside the attention",
    "VisionTransformerSAM": "its attention is in windows and over the image in turn, with positions of its own",
    "Visformer": _CONVOLUTIONS,
    "EdgeNeXt": _CHANNELS,
    "NextViT": _TOKENS_OF_ANOTHER_GRID,
    "TinyVit": _CONVOLUTIONS,
    "FastVit": _CONVOLUTIONS,
    "MetaFormer": _CONVOLUTIONS,
    "FocalNet": "it modulates by pooled contexts and has no attention",
    "MlpMixer": "it mixes patches by learned matrices and has no attention",
    "DeepseekVitEncoder": _TOWER,
    "DeepseekVitClassifier": _TOWER,
    "Gemma4VitEncoder": _PADDED,
    "Gemma4VitClassifier": _PADDED,
    "Qwen3VitEncoder": _TOWER,
    "Qwen3VitClassifier": _TOWER,
    "PoolingVisionTransformer": "convolutions pool its patches between three stages, each with a grid of its own",
    "SwiftFormer": _LINEAR,
    "MobileNetV5": _CONVOLUTIONS,
    "SHViT": _CONVOLUTIONS,
    "IFormer": _CONVOLUTIONS,
    "LowFormer": _CONVOLUTIONS,
    "CPUBone": _CONVOLUTIONS,
    "CSATv2": _CONVOLUTIONS,
    # parts of models
    "DiffAttention": "it subtracts two softmaxes, and it is not settled to which of them a bias belongs",
    "ParallelScalingBlock": "it makes queries, keys, values and its MLP in one layer and has no attention of its own",
    "DiffParallelScalingBlock": "it makes queries, keys, values and its MLP in one layer and has two softmaxes",
    "ParallelThingsBlock": "it adds up several attentions in each block, and layers number the blocks, not those",
}
"""Name of a class of timm's, model or part, to the reason."""


def reason_against(kind: type) -> str:
    """Why LocAt cannot go into something of this class or one that it derives from; empty where nothing is known."""
    return next((REASONS[each.__name__] for each in kind.__mro__ if each.__name__ in REASONS), "")
