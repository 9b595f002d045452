#include "answers/breakeven.hpp"

#include <cmath>

namespace kvatlas::answers {

namespace {

template <class T>
Json or_null(const std::optional<T>& v) {
  return v ? Json(*v) : Json(nullptr);
}

}  // namespace

Json to_json(const sim::Breakeven& b, const sim::BreakevenQuestion& q) {
  const sim::Deployment& d = q.deployment;
  return {{"model", d.model->slug}, {"gpu", sim::canonical(d.gpu)}, {"method", d.recipe.canonical()}, {"against", q.against.canonical()},
          {"compared", q.output ? "requests per second" : "decode step"},
          {"context", or_null(b.context)}, {"batch", or_null(b.batch)}, {"bandwidth_gbs", b.bandwidth ? Json(*b.bandwidth / 1e9) : Json(nullptr)},
          {"bandwidth_wins", b.wins_below ? Json(*b.wins_below ? "below" : "above") : Json(nullptr)}, {"reason", b.reason}, {"context_why", b.context_why}, {"batch_why", b.batch_why},
          {"bandwidth_why", b.bandwidth_why},
          {"asked", {{"context", q.context.value}, {"batch", q.batch}, {"output", q.output ? Json(q.output->value) : Json(nullptr)}}},
          {"gain", std::isfinite(b.gain) ? Json(b.gain) : Json(nullptr)}, {"evidence", sim::name_of(b.evidence)}, {"provenance", "computed"}};
}

}  // namespace kvatlas::answers
