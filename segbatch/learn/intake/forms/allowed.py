"""The operators that a network from elsewhere may use: arithmetic on tensors and sizes.

Torch's registry also holds operators that read and write files, start threads or keep state;
a list of what is let through needs no list of those.
"""

from __future__ import annotations

from typing import Final

_LAYERS = """
    conv2d convolution _convolution conv_transpose2d conv1d linear batch_norm native_batch_norm
    _native_batch_norm_legit _native_batch_norm_legit_no_training instance_norm group_norm
    native_group_norm layer_norm native_layer_norm
    __interpolate
    pixel_shuffle pixel_unshuffle dropout feature_dropout alpha_dropout
    feature_alpha_dropout pad constant_pad_nd reflection_pad2d replication_pad2d
"""
_POINTWISE = """
    relu relu6 leaky_relu prelu _prelu_kernel rrelu elu celu selu gelu silu mish hardtanh
    hardswish hardsigmoid sigmoid logsigmoid log_sigmoid tanh softplus softmax _softmax
    log_softmax _log_softmax threshold add sub rsub mul div true_divide floor_divide
    remainder fmod neg abs exp expm1 log log1p sqrt rsqrt square pow reciprocal clamp clamp_min
    clamp_max minimum maximum min max floor ceil round trunc sign erf sin cos where lerp
    addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_not __and__ __or__
    bitwise_not masked_fill mean sum amax amin argmax std var norm linalg_vector_norm
    matmul mm bmm addmm einsum scaled_dot_product_attention
"""
_SHAPES = """
    cat concat stack split split_with_sizes chunk unbind narrow slice select index_select index
    gather view _unsafe_view view_as reshape reshape_as flatten unflatten permute transpose t
    movedim squeeze unsqueeze expand expand_as repeat contiguous clone detach to _to_copy
    type_as float double half flip roll arange zeros ones full empty zeros_like ones_like
    full_like scalar_tensor tensor lift_fresh_copy copy alias size sym_size dim numel len
    device dtype is_floating_point NumToTensor ImplicitTensorToNum Int IntImplicit
    FloatImplicit ScalarImplicit item Float Bool
"""
_LISTS = """
    append extend insert pop __getitem__ list reverse format warn RaiseException unchecked_cast
    unchecked_unwrap_optional __is__ __isnot__ __not__ not is_scripting is_cuda dict keys values
    items floordiv ceil_div __contains__ data grad_fn shape sorted range_length __range_length
    __derive_index mod sym_max sym_min sym_int sym_float sym_not tuple isinstance _get_tracing_state
    is_tracing is_grad_enabled
"""
OPERATORS: Final = frozenset((_LAYERS + _POINTWISE + _SHAPES + _LISTS).split())
# Torch's own interpolation names every kind of these, of all dimensions.
FAMILIES: Final = ("upsample_", "_upsample_", "max_pool", "avg_pool", "adaptive_", "_adaptive_")


def allowed(name: str) -> bool:
    """Return whether an operator of ``aten`` or ``prim`` is let through; in place or not."""
    plain = name if name.endswith("__") else name.rstrip("_")
    return plain in OPERATORS or plain.startswith(FAMILIES)
