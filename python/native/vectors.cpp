// Vectors of methods as arrays: what a kernel's author compares with.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "answers/vectors.hpp"
#include "python/native/convert.hpp"
#include "reference/registry.hpp"

namespace kvatlas::python {

namespace {

py::dict arrays_of(const TensorMap& tensors) {
  py::dict out;
  for (const auto& [name, t] : tensors) {
    py::array_t<float> a(std::vector<py::ssize_t>(t.dims.begin(), t.dims.end()));
    if (!t.values.empty()) std::memcpy(a.mutable_data(), t.values.data(), t.values.size() * sizeof(float));
    out[py::str(name)] = std::move(a);
  }
  return out;
}

py::dict to_dict(const answers::VectorCase& c) {
  py::list stages;
  for (const answers::VectorStage& s : c.stages) {
    py::dict buffers;
    for (const answers::StoredBuffer& b : s.buffers) {
      py::array_t<std::uint8_t> bytes(static_cast<py::ssize_t>(b.bytes.size()));
      if (!b.bytes.empty()) std::memcpy(bytes.mutable_data(), b.bytes.data(), b.bytes.size());
      buffers[py::str(b.name)] = py::make_tuple(std::move(bytes), b.component, b.side, b.scope);
    }
    stages.append(py::make_tuple(s.name, buffers));
  }
  py::dict out;
  out["description"] = to_python(answers::describe(c));
  out["inputs"] = arrays_of(c.inputs);
  out["trained"] = arrays_of(c.trained);
  out["outputs"] = arrays_of(c.outputs);
  out["stages"] = stages;
  return out;
}

}  // namespace

void bind_vectors(py::module_& m) {
  m.def("vector_cases", [](const std::string& method, int count) {
    std::vector<answers::VectorCase> cases;
    {
      py::gil_scoped_release free;
      cases = answers::vector_cases(find_method(method), count);
    }
    py::list out;
    for (const answers::VectorCase& c : cases) out.append(to_dict(c));
    return out;
  });
  m.def("write_vectors", [](const std::string& method, const std::string& folder, int count) {
    py::gil_scoped_release free;
    std::vector<std::string> folders;
    for (const answers::VectorCase& c : answers::vector_cases(find_method(method), count)) {
      const std::filesystem::path place = std::filesystem::path(folder) / method / c.name;
      answers::write_case(c, place);
      folders.push_back(place.string());
    }
    return folders;
  });
  m.def("read_case", [](const std::string& folder) {
    answers::VectorCase c;
    {
      py::gil_scoped_release free;
      c = answers::read_case(folder);
    }
    return to_dict(c);
  });
}

}  // namespace kvatlas::python
