// A kernel in a shared library that follows answers/kvatlas_kernel.h, run on a case.
#pragma once

#include <string>

#include "answers/checking.hpp"

namespace kvatlas::answers {

/// Loads the library and calls its kvatlas_run_case.
/// throws IoError for a file that is no such library, Error when the kernel answers with a number other than 0
KernelResults run_library(const VectorCase& of, const std::string& path);

}  // namespace kvatlas::answers
