"""The compiled CUDA kernels. A view is (address, dtype, shape, strides in elements); work is queued on a stream."""

_View = tuple[int, str, tuple[int, ...], tuple[int, ...]]

device_type: str
__file__: str

def device_count() -> int: ...
def decode_csr(
    *,
    indptr: int,
    indices: int,
    values: int,
    W_dec: int,
    b_dec: int,
    out: int,
    n_rows: int,
    nnz: int,
    n_features: int,
    d: int,
    W_stride: int,
    W_dtype: str,
    device: int,
    stream: int,
) -> None: ...
def topk_select(
    h: _View,
    maxima: _View | None,
    values: _View,
    indices: _View,
    filled: int,
    first_id: int,
    relu: bool,
    device: int,
    stream: int,
) -> None: ...
def threshold_count(h: _View, theta: _View | None, indptr: _View, device: int, stream: int) -> None: ...
def threshold_compact(
    h: _View, theta: _View | None, indptr: _View, indices: _View, values: _View, device: int, stream: int
) -> None: ...
def feature_order_scratch(nnz: int) -> int: ...
def feature_order(indices: _View, starts: _View, order: _View, scratch: _View, device: int, stream: int) -> None: ...
def decode_residual(
    values: _View,
    indices: _View,
    W_dec: _View,
    b_dec: _View | None,
    y: _View,
    residual: _View,
    dots: _View,
    losses: _View,
    relu: bool,
    device: int,
    stream: int,
) -> None: ...
def gradient_chunks(nnz: int) -> int: ...
def gradient_norm(
    gradient: tuple[_View, ...],
    W_dec: _View | None,
    enough: _View | None,
    row_norms: _View,
    squares: _View,
    norm: _View,
    device: int,
    stream: int,
) -> None: ...
def adam(
    gradient: tuple[_View, ...],
    params: tuple[_View, ...],
    exp_avg: tuple[_View, ...],
    exp_avg_sq: tuple[_View, ...],
    grad_scale: _View,
    lr: _View,
    step: _View,
    constants: _View,
    beta1: float,
    beta2: float,
    eps: float,
    remove_parallel: bool,
    unit_norm: bool,
    lazy: bool,
    device: int,
    stream: int,
) -> None: ...
