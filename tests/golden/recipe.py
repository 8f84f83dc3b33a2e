"""Deterministic weights and inputs for comparing two implementations.

Needs only numpy and the standard library.  Every array is a pure function of
(name, shape): nothing depends on the order in which arrays are made, on a
global seed, or on a deep-learning framework.

    seed(name)  = the first 8 bytes of SHA-256 of the UTF-8 name, little endian
    n(name)     = Generator(PCG64(seed)).standard_normal(shape)      # float64
    value       = mean(kind) + std(kind, shape) * n(name), rounded to float32

``name`` is a parameter's name in the official state dict (see keys/*.json);
another implementation maps its own names to these and then asks for the
arrays, e.g.

    arrays = init_state({official_name(k): tuple(v.shape) for k, v in mine.items()})

Kinds, decided by ``kind_of`` (first match wins):

    kind      which names                                    mean  std
    a_weight  end in '.gaug.log_alpha.weight'                  0    0.4
    a_bias    end in '.gaug.log_alpha.bias'                    2    0.05
    v_any     contain '.gaug.' (log_var weight and bias)       0    0.2
    scale     end in '.gamma', '.gamma_1', '.gamma_2'          0.5  0.1
    token     'pos_embed', 'cls_token', 'reg_token'            0    0.2
    freqs     end in 'rope.freqs'                              0    0.3
    relpos    end in 'relative_position_bias_table'            0    0.5
    norm      end in '.weight', one dimension                  1    0.1
    bias      end in '.bias', one dimension                    0    0.05
    matrix    end in '.weight', two or more dimensions         0    1/sqrt(fan_in)

fan_in is the product of all dimensions but the first.
"""

import hashlib
import math
import re

import numpy as np

_SHARED = re.compile(r"^blocks\.\d+\.jumbo_mlp\.")
_TOKENS = ("pos_embed", "cls_token", "reg_token")


def canonical(name):
    """One name for a tensor that a state dict lists under several.

    Jumbo's one MLP for its wide token appears as ``jumbo_mlp.*`` and again
    as ``blocks.<i>.jumbo_mlp.*`` for each of the 12 blocks.
    """
    return _SHARED.sub("jumbo_mlp.", name)


def kind_of(name, shape):
    if name.endswith(".gaug.log_alpha.weight"):
        return "a_weight"
    if name.endswith(".gaug.log_alpha.bias"):
        return "a_bias"
    if ".gaug." in name:
        return "v_any"
    if name.endswith((".gamma", ".gamma_1", ".gamma_2")):
        return "scale"
    if name in _TOKENS:
        return "token"
    if name.endswith("rope.freqs"):
        return "freqs"
    if name.endswith("relative_position_bias_table"):
        return "relpos"
    # EVA-style query and value biases are parameters called '*_bias'
    if name.endswith(".bias") or name.endswith("_bias"):
        return "bias"
    if name.endswith(".weight") and len(shape) == 1:
        return "norm"
    if name.endswith(".weight") and len(shape) >= 2:
        return "matrix"
    raise KeyError(f"no kind for {name!r} of shape {tuple(shape)}")


def mean_std(kind, shape):
    if kind == "matrix":
        return 0.0, 1.0 / math.sqrt(math.prod(shape[1:]))
    return {
        "a_weight": (0.0, 0.4),
        "a_bias": (2.0, 0.05),
        "v_any": (0.0, 0.2),
        "scale": (0.5, 0.1),
        "token": (0.0, 0.2),
        "freqs": (0.0, 0.3),
        "relpos": (0.0, 0.5),
        "norm": (1.0, 0.1),
        "bias": (0.0, 0.05),
    }[kind]


def normal(name, shape):
    """Standard normal float64 values that belong to ``name``."""
    seed = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape))


def init_state(shapes):
    """``{official name: shape}`` -> ``{official name: float32 array}``."""
    out = {}
    for name, shape in shapes.items():
        shape = tuple(int(s) for s in shape)
        mean, std = mean_std(kind_of(name, shape), shape)
        out[name] = (mean + std * normal(canonical(name), shape)).astype(np.float32)
    return out


def make_input(shape, name="input"):
    """A float32 input; an image batch uses the name 'input'."""
    return normal(name, shape).astype(np.float32)


# How the golden files were thinned, so that a checker can thin alike.
def subsample(array, limit=120_000):
    """Flatten in C order and keep every k-th value, k the smallest that fits.

    Returns (values, k).  k = 1 keeps all values (still flattened).
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, -(-flat.size // limit))
    if step > 1 and step % 2 == 0:
        step += 1  # an odd step does not fall in line with even widths
    return flat[::step], step


if __name__ == "__main__":
    # Print values by which another language's version can check itself.
    for name, shape in [
        ("input", (2, 3, 224, 224)),
        ("cls_token", (1, 1, 192)),
        ("blocks.0.attn.gaug.log_var.weight", (2, 64)),
        ("blocks.0.norm1.weight", (192,)),
        ("blocks.0.attn.qkv.weight", (576, 192)),
    ]:
        a = make_input(shape, name) if name == "input" else init_state({name: shape})[name]
        print(name, a.shape, a.reshape(-1)[:3].tolist(), float(a.astype(np.float64).sum()))
