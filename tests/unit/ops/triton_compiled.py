"""Compile Triton's kernels of routed attention for a GPU that is not there; run by ``test_routed_attention_triton.py``.

Prints a line a kernel: its name, the bytes of machine code, the bytes of shared memory.
"""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile  # noqa: A004

from layerroute.ops.routed_attention import triton_kernel

HOPPER = GPUTarget("cuda", 90, 32)
KERNELS = (triton_kernel._forward, triton_kernel._backward_query, triton_kernel._backward_key)


def kind(name: str, dtype: str) -> str:
    """Triton's type of an argument, by its name."""
    if name.isupper():
        return "constexpr"
    if name in ("scale", "softcap", "lse_ptr", "delta_ptr"):
        return "*fp32" if name.endswith("_ptr") else "fp32"
    if name == "visible_ptr":
        return "*u8"
    if name.startswith(("start", "stop", "block", "first", "last")):
        return "*i32"
    return f"*{dtype}" if name.endswith("_ptr") else "i32"


for kernel in KERNELS:
    for dtype, width, more in (("bf16", 128, False), ("fp32", 64, True)):
        half = dtype != "fp32"
        tiles = triton_kernel._tiles(width, half)
        constants = {
            "HEADS": 8,
            "REPEAT": 4,
            "D": width,
            "V": width,
            "BLOCK_D": width,
            "BLOCK_V": width,
            "BLOCK_M": tiles.queries,
            "BLOCK_N": tiles.keys,
            "HAS_SOFTCAP": more,
            "HAS_VISIBLE": more,
            "PRECISION": "tf32" if half else "ieee",
        }
        source = ASTSource(
            fn=kernel,
            signature={name: kind(name, dtype) for name in kernel.arg_names},
            constexprs={name: value for name, value in constants.items() if name in kernel.arg_names},
        )
        made = compile(source, target=HOPPER, options={"num_warps": tiles.warps})
        print(kernel.__name__, dtype, len(made.asm["cubin"]), made.metadata.shared)
