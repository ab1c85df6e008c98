"""What Triton's interpreter needs to run here.

Triton 3.6 turns arrays of one element into integers in a way that NumPy ended with 2.4, so that no
loop with bounds known only at run time would run.
"""

from __future__ import annotations

from typing import Any

import triton


def mend() -> None:
    """Make the interpreter of Triton 3.6 work with NumPy 2.4; later ones need nothing."""
    if not triton.__version__.startswith("3.6."):
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_index
