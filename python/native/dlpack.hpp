// Arrays of other libraries by the DLPack protocol, read without the library that made them.
#pragma once

#include <pybind11/pybind11.h>

namespace kvatlas::python {

namespace py = pybind11;

/// A NumPy array over the memory of anything with __dlpack__ on a CPU, and whether its 16-bit words are bf16 patterns (NumPy
/// has no such type: they come as uint16). The array keeps the tensor alive. throws InvalidArgument: other devices and types
py::tuple array_of_dlpack(const py::object& tensor);

}  // namespace kvatlas::python
