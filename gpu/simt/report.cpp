#include "gpu/simt/report.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "core/errors.hpp"

namespace kvatlas::gpu {

namespace {

using Json = nlohmann::ordered_json;

Json json_of_counts(const AccessCounts& c, bool shared) {
  Json j{{"requests", c.requests}, {"lanes", c.lanes}, {"bytes", c.bytes}};
  if (shared) {
    j["wavefronts"] = c.wavefronts;
    j["ideal_wavefronts"] = c.ideal_wavefronts;
    j["conflicts"] = c.conflicts();
  } else {
    j["sectors"] = c.sectors;
    j["distinct_sectors"] = c.distinct_sectors;
    j["lines"] = c.lines;
    j["partial_sectors"] = c.partial_sectors;
    j["efficiency"] = c.efficiency();
  }
  j["serialised"] = c.serialised;
  return j;
}

std::string line_of(const std::string& site, const char* op, const std::string& width, const AccessCounts& c, bool shared) {
  const std::string of_op = shared ? fmt::format("{:>10} {:>10} {:>9}", c.wavefronts, c.ideal_wavefronts, c.conflicts())
                                   : fmt::format("{:>10} {:>10} {:>9.3f}", c.sectors, c.distinct_sectors, c.efficiency());
  return fmt::format("{:<28} {:<14} {:>5} {:>10} {:>12} {}\n", site, op, width, c.requests, c.bytes, of_op);
}

}  // namespace

std::string table_of(const LaunchReport& r) {
  std::string out = fmt::format("{:<28} {:<14} {:>5} {:>10} {:>12} {:>10} {:>10} {:>9}\n", "site", "operation", "width", "requests", "bytes", "sectors*", "distinct*", "useful*");
  for (const SiteCounts& s : r.counts.sites) out += line_of(to_string(s.site), name_of(s.op), cat(s.width), s.counts, is_shared(s.op));
  out += line_of("all", "global reads", "", r.counts.reads, false);
  out += line_of("all", "global writes", "", r.counts.writes, false);
  if (r.counts.atomics.requests > 0) out += line_of("all", "global atomics", "", r.counts.atomics, false);
  out += line_of("all", "shared", "", r.counts.shared, true);
  out += "* of shared memory: wavefronts, ideal wavefronts, conflicts\n";
  if (r.counts.l2)
    out += fmt::format("L2 of {} bytes: {} sectors hit, {} fetched, {} written back\n", r.counts.l2->capacity_bytes, r.counts.l2->hits, r.counts.l2->read_misses, r.counts.l2->written_back);
  for (const Finding& f : r.findings) out += fmt::format("{}: {}\n", name_of(f.kind), f.text);
  if (!r.completed) out += "the launch was stopped\n";
  return out;
}

std::string json_of(const LaunchReport& r) {
  Json j{{"completed", r.completed}, {"findings", Json::array()}, {"sites", Json::array()}};
  for (const Finding& f : r.findings)
    j["findings"].push_back({{"kind", name_of(f.kind)}, {"site", to_string(f.site)}, {"other", f.other.line > 0 ? Json(to_string(f.other)) : Json()}, {"text", f.text}});
  for (const SiteCounts& s : r.counts.sites) {
    Json site{{"site", to_string(s.site)}, {"op", name_of(s.op)}, {"width", s.width}};
    site.update(json_of_counts(s.counts, is_shared(s.op)));
    j["sites"].push_back(std::move(site));
  }
  j["reads"] = json_of_counts(r.counts.reads, false);
  j["writes"] = json_of_counts(r.counts.writes, false);
  j["atomics"] = json_of_counts(r.counts.atomics, false);
  j["shared"] = json_of_counts(r.counts.shared, true);
  if (r.counts.l2)
    j["l2"] = {{"capacity_bytes", r.counts.l2->capacity_bytes}, {"hits", r.counts.l2->hits}, {"read_misses", r.counts.l2->read_misses}, {"written_back", r.counts.l2->written_back}};
  return j.dump(2);
}

}  // namespace kvatlas::gpu
