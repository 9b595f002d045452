// Stores: sweeps into a file, merging shards, Pareto fronts and selections.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/errors.hpp"
#include "python/native/convert.hpp"
#include "sweeps/configuration.hpp"
#include "sweeps/imports.hpp"
#include "sweeps/json.hpp"
#include "sweeps/merge.hpp"
#include "sweeps/pareto.hpp"
#include "sweeps/runner.hpp"
#include "sweeps/schema.hpp"
#include "sweeps/spec.hpp"

namespace kvatlas::python {

namespace {

py::object sweep_spec(const std::string& text, const std::string& origin, const std::string& folder, const std::string& db, int jobs, const std::string& shard,
                      const std::function<void(py::dict)>& progress) {
  std::atomic<bool> stop{false};
  sweep::SweepOptions options{.jobs = jobs, .shard = sweep::parse_shard(shard), .stop = &stop, .progress = {}};
  if (progress)
    options.progress = [&](const sweep::Progress& p) {
      py::gil_scoped_acquire hold;
      py::dict state;
      state["configurations"] = p.configurations;
      state["configurations_done"] = p.configurations_done;
      state["stored"] = p.stored;
      state["skipped"] = p.skipped;
      state["infeasible"] = p.infeasible;
      state["seconds"] = p.seconds;
      state["points_per_s"] = p.points_per_s;
      state["eta_s"] = p.eta_s < 0 ? py::object(py::none()) : py::object(py::float_(p.eta_s));
      progress(state);
    };
  const auto report = until_stopped(stop, [&] { return sweep::run_sweep(sweep::parse_spec(text, origin, folder), db, options); });
  return to_python(sweep::to_json(report, db));
}

/// (content hash, configurations) of each of `count` shards of a spec: the hash covers the spec, the models it imports and the
/// version of the code, so equal hashes mean equal rows.
std::vector<std::pair<std::string, std::int64_t>> chunk_keys(const std::string& text, const std::string& origin, const std::string& folder, int count) {
  py::gil_scoped_release free;
  const sweep::Spec spec = sweep::parse_spec(text, origin, folder);
  const sweep::WorkList all = sweep::work_list(spec);
  std::vector<std::pair<std::string, std::int64_t>> out;
  for (int i = 1; i <= count; ++i) {
    const sweep::Shard shard{.index = i, .count = count};
    std::string content = cat(spec.text, "\n", sweep::code_version(), "\n", i, "/", count);
    std::int64_t held = 0;
    for (const sweep::Configuration& c : all.configurations)
      if (shard.holds(c.key)) {
        content += sweep::hex(c.key);
        ++held;
      }
    out.emplace_back(sweep::hex(sweep::murmur3(content)), held);
  }
  return out;
}

std::vector<std::filesystem::path> paths(const std::vector<std::string>& names) { return {names.begin(), names.end()}; }

py::object list_of(const std::vector<nlohmann::json>& rows) {
  py::list out;
  for (const nlohmann::json& row : rows) out.append(to_python(row));
  return out;
}

}  // namespace

void bind_store(py::module_& m) {
  m.def("sweep", &sweep_spec);
  m.def("chunk_keys", &chunk_keys);
  m.def("code_version", [] { return std::string(sweep::code_version()); });
  m.def("merge", [](const std::string& out, const std::vector<std::string>& inputs, bool force) {
    return to_python(sweep::to_json(interruptible([&] { return sweep::merge_stores(out, paths(inputs), force); })));
  });
  m.def("import_kinds", [] { return std::vector<std::string>(sweep::import_kinds().begin(), sweep::import_kinds().end()); });
  m.def("import_results", [](const std::string& kind, const std::string& file, const std::optional<std::string>& db, const std::optional<std::string>& model,
                             const std::optional<std::string>& gpu, const std::optional<std::string>& method) {
    return to_python(sweep::to_json(interruptible([&] {
      const sweep::ImportReport report = sweep::read_results(kind, file, {.model = model, .gpu = gpu, .method = method});
      if (db) sweep::store_results(*db, report);
      return report;
    })));
  });
  m.def("diff", [](const std::string& a, const std::string& b, double threshold) {
    return to_python(sweep::to_json(interruptible([&] { return sweep::diff_stores(a, b, threshold); })));
  });
  m.def("pareto", [](const std::string& db, const std::string& x, const std::string& y, const std::string& where) {
    return list_of(interruptible([&] { return sweep::pareto(db, {.x = x, .y = y, .where = where}); }));
  });
  m.def("select_points", [](const std::string& db, const std::string& where, std::int64_t limit) {
    return list_of(interruptible([&] { return sweep::select_points(db, where, limit); }));
  });
}

}  // namespace kvatlas::python
