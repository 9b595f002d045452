#include "simulator/step_timeline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "simulator/step_model.hpp"

namespace kvatlas::sim {

namespace {

/// A part with the place in a layer where it runs.
struct Placed {
  Part part;
  int rank = 0;                // order within a layer: projections, the cache's kernels, the rest, element-wise, exchanges
  double first = 0, layers = 1;  // layers among which its launches are spread
  std::vector<TimelineEvent::Term> terms{};
};

std::vector<TimelineEvent::Term> terms_of(const KernelTerms& t, bool released) {
  std::vector<TimelineEvent::Term> out;
  for (const TimelineEvent::Term& term : {TimelineEvent::Term{"load", t.byte_s}, {"unpack", released ? t.released_value_s : t.value_s}, {"tensor", t.tensor_s}, {"vector", t.vector_s}, {"link", t.link_s}})
    if (term.seconds > 0) out.push_back(term);
  return out;
}

}  // namespace

std::vector<TimelineEvent> step_timeline(const Evaluator& evaluator, Tokens prompt, Tokens context, int batch) {
  const StepModel model(evaluator.deployment());
  const double layers = models::layers(*model.deployment().model);
  std::vector<Placed> inside;
  std::vector<Part> outside;
  const std::vector<KernelTerms> terms = model.decode_terms(prompt, context, batch);
  std::size_t kernels = 0;
  double first = 0, group = 0;
  bool before = true;
  model.decode_parts(prompt, context, batch, Tokens(0), [&](const Part& p) {
    const std::string_view name = p.name;
    if (kernels < terms.size()) {  // the plan's kernels come first
      inside.push_back({p, 1, 0, layers, terms_of(terms[kernels++], model.deployment().released_plan)});
      return;
    }
    const bool end = p.launches < 2 || name == "lm_head" || (p.category == Category::other && p.launches < layers);
    if (end) {
      outside.push_back(p);
    } else if (p.category == Category::matrix) {
      // Groups of layers follow one another; each begins with its projections.
      if (name.starts_with("qkv") && !before) first += group, before = true;
      if (name.starts_with("qkv")) group = p.launches;
      if (group == 0) group = p.launches;
      if (name == "o_proj") before = false;
      inside.push_back({p, before && name != "o_proj" ? 0 : 2, first, group});
    } else {
      inside.push_back({p, name == "elementwise" ? 3 : 4, 0, layers});
    }
  });
  std::stable_sort(inside.begin(), inside.end(), [](const Placed& a, const Placed& b) { return a.rank < b.rank; });

  std::vector<TimelineEvent> events;
  double at = 0;
  const auto add = [&](const Part& p, int layer, double launches, const std::vector<TimelineEvent::Term>& parts) {
    const double share = launches / p.launches;
    events.push_back({.name = p.name, .layer = layer, .start_s = at, .seconds = p.seconds * share, .bound = p.bound, .bytes = p.bytes * share, .flops = p.flops * share, .terms = parts});
    at += p.seconds * share;
  };
  for (int layer = 0; layer < static_cast<int>(layers); ++layer)
    for (const Placed& p : inside) {
      // The launches that fall to this layer when all are spread evenly; an event of every few steps is a fraction of one.
      const double from = (layer - p.first) * p.part.launches / p.layers, to = (layer + 1 - p.first) * p.part.launches / p.layers;
      if (to <= 0 || from >= p.part.launches) continue;
      const double launches = p.part.launches < p.layers && p.part.launches >= 1 ? std::ceil(to - 1e-9) - std::ceil(from - 1e-9) : to - from;
      if (launches > 0) add(p.part, layer, launches, p.terms);
    }
  for (const Part& p : outside) add(p, -1, p.launches, {});
  return events;
}

std::string timeline_json(const std::vector<TimelineEvent>& events, const std::string& title) {
  fmt::memory_buffer out;
  const auto put = [&](fmt::string_view format, const auto&... args) { fmt::vformat_to(std::back_inserter(out), format, fmt::make_format_args(args...)); };
  put("{{\"displayTimeUnit\": \"ms\", \"otherData\": {{\"provenance\": \"computed\"}}, \"traceEvents\": [\n");
  put("{{\"name\": \"process_name\", \"ph\": \"M\", \"pid\": 1, \"args\": {{\"name\": \"{}\"}}}}", title);
  const char* tracks[] = {"layers", "kernels", "load", "unpack", "tensor", "vector", "link"};
  for (int t = 0; t < 7; ++t) put(",\n{{\"name\": \"thread_name\", \"ph\": \"M\", \"pid\": 1, \"tid\": {}, \"args\": {{\"name\": \"{}\"}}}}", t + 1, tracks[t]);
  const auto slice = [&](const std::string& name, int track, double start, double seconds) {
    const double ts = 1e6 * start, duration = 1e6 * seconds;
    put(",\n{{\"name\": \"{}\", \"ph\": \"X\", \"ts\": {:.4f}, \"dur\": {:.4f}, \"pid\": 1, \"tid\": {}", name, ts, duration, track);
  };
  for (std::size_t i = 0; i < events.size();) {
    std::size_t last = i;
    double seconds = 0;
    while (last < events.size() && events[last].layer == events[i].layer) seconds += events[last++].seconds;
    slice(events[i].layer < 0 ? std::string("outside the layers") : fmt::format("layer {}", events[i].layer), 1, events[i].start_s, seconds);
    put("}}");
    i = last;
  }
  for (const TimelineEvent& e : events) {
    slice(e.name, 2, e.start_s, e.seconds);
    const std::string bound = name_of(e.bound);
    put(", \"args\": {{\"layer\": {}, \"bound_by\": \"{}\", \"bytes\": {:.0f}, \"flops\": {:.0f}}}}}", e.layer, bound, e.bytes, e.flops);
    for (const TimelineEvent::Term& t : e.terms)
      for (int track = 2; track < 7; ++track)
        if (std::string_view(tracks[track]) == t.name) {
          slice(e.name, track + 1, e.start_s, std::min(t.seconds, e.seconds));
          put("}}");
        }
  }
  put("\n]}}\n");
  return fmt::to_string(out);
}

}  // namespace kvatlas::sim
