// Models and deployments as Python holds them.
#pragma once

#include <memory>

#include "models/model.hpp"
#include "simulator/evaluator.hpp"

namespace kvatlas::python {

/// A model that lives as long as somebody in Python asks it something.
struct ModelHandle {
  std::shared_ptr<const models::Model> model;
};

/// A deployment and the model that it points to.
struct DeploymentHandle {
  std::shared_ptr<const models::Model> model;
  sim::Deployment deployment;
};

}  // namespace kvatlas::python
