"""Stands in for SGLang's compiled kernels on a machine that has none, for sglang_check.py alone.

SGLang imports names from sgl_kernel even where it then computes with torch. Here every name exists and none computes:
calling one is an error, so that no check can pass by it.
"""


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args, **_kwargs):
        raise RuntimeError(f"sgl_kernel.{name} was called, but SGLang's kernels are not installed")

    return missing
