// A serving run as Chrome/Perfetto JSON: one process a replica, counters, and the phases of single requests.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "simulator/serving/serving.hpp"

namespace kvatlas::sim {

namespace {

constexpr double kMicro = 1e6;

std::string span_name(const Span& s) {
  if (s.prefill_tokens == 0) return fmt::format("{} x decode of {}", s.steps, s.decodes);
  if (s.decodes == 0) return fmt::format("prefill {} tokens", s.prefill_tokens);
  return fmt::format("prefill {} tokens + decode of {}", s.prefill_tokens, s.decodes);
}

}  // namespace

std::string serving_timeline(const ServingReport& report, const Stream& stream, std::size_t most_requests) {
  fmt::memory_buffer out;
  const auto add = [&](fmt::string_view format, const auto&... args) { fmt::vformat_to(std::back_inserter(out), format, fmt::make_format_args(args...)); };
  bool first = true;
  const auto begin = [&] {
    add("{}", first ? "\n" : ",\n");
    first = false;
  };
  add("{{\"displayTimeUnit\": \"ms\", \"otherData\": {{\"provenance\": \"computed\"}}, \"traceEvents\": [");
  int replicas = 0;
  for (const Span& s : report.spans) replicas = std::max(replicas, s.replica + 1);
  for (int r = 0; r < replicas; ++r) {
    begin();
    add("{{\"name\": \"process_name\", \"ph\": \"M\", \"pid\": {}, \"args\": {{\"name\": \"replica {}\"}}}}", r + 1, r);
  }
  for (const Span& s : report.spans) {
    begin();
    add("{{\"name\": \"{}\", \"cat\": \"pass\", \"ph\": \"X\", \"ts\": {:.3f}, \"dur\": {:.3f}, \"pid\": {}, \"tid\": 1, \"args\": {{\"steps\": {}, \"decodes\": {}, \"prefill_tokens\": {}}}}}",
        span_name(s), kMicro * s.start_s, kMicro * (s.end_s - s.start_s), s.replica + 1, s.steps, s.decodes, s.prefill_tokens);
    begin();
    add("{{\"name\": \"load\", \"ph\": \"C\", \"ts\": {:.3f}, \"pid\": {}, \"args\": {{\"decoding\": {}, \"waiting\": {}}}}}", kMicro * s.start_s, s.replica + 1, s.decodes, s.waiting);
    begin();
    add("{{\"name\": \"blocks in use\", \"ph\": \"C\", \"ts\": {:.3f}, \"pid\": {}, \"args\": {{\"blocks\": {}}}}}", kMicro * s.start_s, s.replica + 1, s.blocks_in_use);
  }
  const std::size_t shown = std::min(most_requests, report.progress.size());
  for (std::size_t i = 0; i < shown; ++i) {
    const Progress& p = report.progress[i];
    if (p.state != Progress::State::done) continue;
    const struct {
      const char* name;
      double from, to;
    } phases[] = {{"queue", p.arrive_s, p.scheduled_s}, {"prefill", p.scheduled_s, p.first_token_s}, {"decode", p.first_token_s, p.last_token_s}};
    for (const auto& phase : phases) {
      begin();
      add("{{\"name\": \"{}\", \"cat\": \"request\", \"ph\": \"b\", \"id\": {}, \"ts\": {:.3f}, \"pid\": 0, \"tid\": 1, \"args\": {{\"prompt\": {}, \"output\": {}, \"preemptions\": {}}}}}",
          phase.name, i, kMicro * phase.from, stream.requests[i].prompt, stream.requests[i].output, p.preemptions);
      begin();
      add("{{\"name\": \"{}\", \"cat\": \"request\", \"ph\": \"e\", \"id\": {}, \"ts\": {:.3f}, \"pid\": 0, \"tid\": 1}}", phase.name, i, kMicro * phase.to);
    }
  }
  add("\n]}}\n");
  return fmt::to_string(out);
}

}  // namespace kvatlas::sim
