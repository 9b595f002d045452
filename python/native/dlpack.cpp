#include "python/native/dlpack.hpp"

#include <pybind11/numpy.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/errors.hpp"

namespace kvatlas::python {

namespace {

// The layout of DLPack 0.x, which every producer still hands out under the capsule name "dltensor".
struct Device {
  std::int32_t type, id;
};
struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t rank;
  DataType type;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: dense
  std::uint64_t byte_offset;
};
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};
constexpr std::int32_t kCpu = 1, kCudaHost = 3;
enum Code : std::uint8_t { kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

py::dtype dtype_of(const DataType& t) {
  if (t.lanes == 1) {
    const auto named = [](const char* kind, int bits) { return py::dtype(cat(kind, bits)); };
    if (t.code == kBfloat && t.bits == 16) return py::dtype("uint16");
    if (t.code == kFloat && (t.bits == 16 || t.bits == 32 || t.bits == 64)) return named("float", t.bits);
    if ((t.code == kInt || t.code == kUint) && (t.bits == 8 || t.bits == 16 || t.bits == 32 || t.bits == 64)) return named(t.code == kInt ? "int" : "uint", t.bits);
    if (t.code == kBool && t.bits == 8) return py::dtype("bool");
  }
  throw InvalidArgument(cat("the tensor's DLPack type is (code ", int{t.code}, ", ", int{t.bits}, " bits, ", t.lanes, " lanes), must be an integer, float or bfloat type of one lane"));
}

}  // namespace

py::tuple array_of_dlpack(const py::object& tensor) {
  const auto device = tensor.attr("__dlpack_device__")().cast<py::tuple>();
  if (const int type = device[0].cast<int>(); type != kCpu && type != kCudaHost)
    throw InvalidArgument(cat("the tensor is on DLPack device type ", type, ", must be in CPU memory (1)"));
  const py::capsule capsule = tensor.attr("__dlpack__")();
  if (std::strcmp(capsule.name() == nullptr ? "" : capsule.name(), "dltensor") != 0) throw InvalidArgument("the tensor's __dlpack__ returned no capsule named dltensor, must be an unused DLPack tensor");
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  const Tensor& t = managed->tensor;
  const py::dtype type = dtype_of(t.type);
  std::vector<py::ssize_t> shape, strides(static_cast<std::size_t>(t.rank));
  for (std::int32_t i = 0; i < t.rank; ++i) shape.push_back(static_cast<py::ssize_t>(t.shape[i]));
  py::ssize_t dense = type.itemsize();
  for (std::int32_t i = t.rank - 1; i >= 0; --i) {
    const auto at = static_cast<std::size_t>(i);
    strides[at] = t.strides != nullptr ? static_cast<py::ssize_t>(t.strides[i]) * type.itemsize() : dense;
    dense *= shape[at];
  }
  // From here on the tensor is ours: its producer must not free it with the capsule.
  if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
  const py::capsule owner(managed, [](void* p) {
    auto* m = static_cast<Managed*>(p);
    if (m->deleter != nullptr) m->deleter(m);
  });
  const py::array array(type, shape, strides, static_cast<const char*>(t.data) + t.byte_offset, owner);
  array.attr("flags").attr("writeable") = false;
  return py::make_tuple(array, t.type.code == kBfloat);
}

}  // namespace kvatlas::python
