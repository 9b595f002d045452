// JSON records as Python objects, and calls that let other threads run while they work.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <future>
#include <nlohmann/json.hpp>

namespace kvatlas::python {

namespace py = pybind11;

template <class Json>
py::object to_python(const Json& j) {
  switch (j.type()) {
    case Json::value_t::boolean: return py::bool_(j.template get<bool>());
    case Json::value_t::number_integer: return py::int_(j.template get<std::int64_t>());
    case Json::value_t::number_unsigned: return py::int_(j.template get<std::uint64_t>());
    case Json::value_t::number_float: return py::float_(j.template get<double>());
    case Json::value_t::string: return py::str(j.template get_ref<const std::string&>());
    case Json::value_t::array: {
      py::list list;
      for (const Json& item : j) list.append(to_python(item));
      return list;
    }
    case Json::value_t::object: {
      py::dict dict;
      for (const auto& [key, value] : j.items()) dict[py::str(key)] = to_python(value);
      return dict;
    }
    default: return py::none();
  }
}

/// Runs `work` on another thread with the interpreter free; Ctrl-C sets `stop`, waits for `work` to notice it, and is raised.
/// Work that ends by throwing because of `stop` is answered by KeyboardInterrupt, not by what it threw.
template <class Work>
auto interruptible(std::atomic<bool>& stop, Work&& work) {
  using Result = decltype(work());
  std::future<Result> done = std::async(std::launch::async, std::forward<Work>(work));
  bool interrupted = false;
  for (;;) {
    {
      py::gil_scoped_release free;
      if (done.wait_for(std::chrono::milliseconds(20)) == std::future_status::ready) break;
    }
    if (!interrupted && PyErr_CheckSignals() != 0) {
      interrupted = true;
      stop.store(true);
    }
  }
  if (!interrupted) return done.get();
  py::error_already_set raised;  // takes the KeyboardInterrupt that a handler has set
  try {
    py::gil_scoped_release free;
    done.get();
  } catch (...) {
  }
  throw raised;
}

void bind_catalogue(py::module_& m);
void bind_simulation(py::module_& m);
void bind_cache(py::module_& m);
void bind_store(py::module_& m);
void bind_vectors(py::module_& m);

}  // namespace kvatlas::python
