"""The extension module fits the NumPy that it is used with."""
import numpy as np
from kvatlas import _native


def test_arrays_keep_their_elements_between_python_and_the_library():
    columns = _native.steps([], np.full(3, -1, np.int32), np.arange(3), np.arange(3), 1)
    assert np.isnan(columns["step_ms"]).all() and columns["bound_by"].tolist() == [255, 255, 255]
    assert _native.view_strides(np.zeros((2, 3, 4), np.float32)) == [12, 4, 1]
