// The extension module kvatlas._native: bindings, and the one place where C++ errors become Python exceptions.
#include <pybind11/pybind11.h>

#include <chrono>
#include <future>
#include <string>

#include "core/errors.hpp"
#include "python/native/convert.hpp"

#ifndef KVATLAS_VERSION
#error "the build defines KVATLAS_VERSION"
#endif

namespace {

void translate(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const kvatlas::InvalidArgument& e) {
    PyErr_SetString(PyExc_ValueError, e.what());
  } catch (const kvatlas::Unsupported& e) {
    PyErr_SetString(PyExc_NotImplementedError, e.what());
  } catch (const kvatlas::IoError& e) {
    PyErr_SetString(PyExc_OSError, e.what());
  } catch (const kvatlas::Error& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
}

#if PYBIND11_VERSION_MAJOR == 2 && PYBIND11_VERSION_MINOR < 12
/// pybind11 before 2.12 reads NumPy 2's arrays with the layout of NumPy 1: every element would be the first one.
void require_numpy_1() {
  const auto version = pybind11::module_::import("numpy").attr("__version__").cast<std::string>();
  if (version.empty() || version.front() != '1')
    throw pybind11::import_error("this build of kvatlas (pybind11 " + std::to_string(PYBIND11_VERSION_MAJOR) + "." + std::to_string(PYBIND11_VERSION_MINOR) + ") works with NumPy 1, found " + version +
                                 "; build with pybind11 2.12 or newer (pip install . does)");
}
#else
void require_numpy_1() {}
#endif

}  // namespace

void kvatlas::python::run_until_stopped(std::atomic<bool>& stop, const std::function<void()>& work) {
  std::future<void> done = std::async(std::launch::async, work);
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

PYBIND11_MODULE(_native, m) {
  m.doc() = "The C++ half of kvatlas; use the package kvatlas.";
  m.attr("__version__") = KVATLAS_VERSION;
  require_numpy_1();
  pybind11::register_exception_translator(translate);
  kvatlas::python::bind_catalogue(m);
  kvatlas::python::bind_simulation(m);
  kvatlas::python::bind_cache(m);
  kvatlas::python::bind_store(m);
  kvatlas::python::bind_vectors(m);
}
