// JSON records as Python objects, and calls that let other threads run while they work.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <type_traits>
#include <utility>

#include "core/interruption.hpp"

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

/// Runs `work` on another thread with the interpreter free; Ctrl-C sets `stop`, waits for `work` to end, and is raised in place of
/// what `work` returned or threw.
void run_until_stopped(std::atomic<bool>& stop, const std::function<void()>& work);

template <class Work>
auto until_stopped(std::atomic<bool>& stop, const Work& work) {
  using Result = decltype(work());
  if constexpr (std::is_void_v<Result>) {
    run_until_stopped(stop, work);
  } else {
    std::optional<Result> result;
    run_until_stopped(stop, [&] { result.emplace(work()); });
    return std::move(*result);
  }
}

/// The same for work that knows no flag: it ends at its next interruption_point() and leaves half done what it was changing.
template <class Work>
auto interruptible(const Work& work) {
  std::atomic<bool> stop{false};
  return until_stopped(stop, [&] {
    const Interruptible lent(&stop);
    return work();
  });
}

void bind_catalogue(py::module_& m);
void bind_simulation(py::module_& m);
void bind_cache(py::module_& m);
void bind_store(py::module_& m);
void bind_vectors(py::module_& m);

}  // namespace kvatlas::python
