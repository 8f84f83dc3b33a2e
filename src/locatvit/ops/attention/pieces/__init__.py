"""Attention with the locality bias on a CPU: the attention logits of a piece at a time, in cache.

``plan.py`` cuts a call into pieces, ``sources.py`` tells where the bias comes from, ``products.py``, ``forward.py`` and
``backward.py`` compute, in the memory of ``scratch.py``, and ``op.py`` is what torch sees. The mathematics is in the
README of the folder above.

Of both forms of the bias: ``first`` and ``second`` are its two factors; or, where there is a ``prediction``, weight and
bias of the layer that predicts it.
"""

from locatvit.ops.attention.pieces.op import attend, attend_predicted
from locatvit.ops.attention.pieces.plan import worth_predicting

__all__ = ["attend", "attend_predicted", "worth_predicting"]
