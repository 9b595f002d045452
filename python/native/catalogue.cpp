// Catalogue: methods, presets, models, GPUs, engines, and what a recipe stores on a model.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "answers/record.hpp"
#include "answers/storage.hpp"
#include "models/hf_config.hpp"
#include "models/registry.hpp"
#include "python/native/convert.hpp"
#include "python/native/model_handle.hpp"
#include "reference/registry.hpp"
#include "simulator/engine.hpp"
#include "simulator/gpu_json.hpp"

namespace kvatlas::python {

namespace {

py::object storage(const ModelHandle& m, const std::string& method, std::int64_t context, std::int64_t generated, int batch, std::int64_t shared_prefix, bool released) {
  const Recipe recipe = Recipe::parse(method);
  for (const auto& [name, value] : {std::pair{"generated", generated}, std::pair{"shared_prefix", shared_prefix}})
    if (value < 0) throw InvalidArgument(cat(name, " is ", value, ", must be at least 0"));
  if (context < 1) throw InvalidArgument(cat("context is ", context, ", must be at least 1"));
  if (batch < 1) throw InvalidArgument(cat("batch is ", batch, ", must be at least 1"));
  if (shared_prefix > context) throw InvalidArgument(cat("shared_prefix is ", shared_prefix, ", must be at most context (", context, ")"));
  const History h{.prompt = Tokens(context), .generated = Tokens(generated), .sequences = batch, .shared_prefix = Tokens(shared_prefix)};
  answers::Storage a;
  {
    py::gil_scoped_release free;
    a = answers::storage(recipe, m.model->cache, h, released);
  }
  answers::Json document = a.json;
  document["method"] = recipe.canonical();
  document["model"] = m.model->slug;
  document["context"] = context;
  document["generated"] = generated;
  document["batch"] = batch;
  document["why_not"] = a.refusal.empty() ? answers::Json(nullptr) : answers::Json(a.refusal);
  document["formulas"] = a.formulas;
  document["provenance"] = "computed";
  return to_python(document);
}

py::list slugs_of_methods() {
  py::list out;
  for (const Method* m : all_methods()) out.append(py::str(m->slug));
  return out;
}

ModelHandle shared(models::Model model) { return {std::make_shared<const models::Model>(std::move(model))}; }

}  // namespace

void bind_catalogue(py::module_& m) {
  m.def("method_slugs", &slugs_of_methods);
  m.def("method_record", [](const std::string& slug) { return to_python(answers::method_record(find_method(slug))); });
  m.def("canonical_recipe", [](const std::string& text) { return Recipe::parse(text).canonical(); });
  m.def("main_method", [](const std::string& text) { return std::string(Recipe::parse(text).main().slug); });
  m.def("presets", [] {
    answers::Json list = answers::Json::array();
    for (const Preset& p : presets()) list.push_back({{"name", p.name}, {"method", p.recipe}, {"source", p.source}, {"provenance", "published"}});
    return to_python(list);
  });
  m.def("parse_size", [](const std::string& name, const std::string& text) {
    const auto size = parse_size(text);
    if (!size) throw InvalidArgument(cat(name, " is \"", text, "\", must be a size: 32768, 32K or 1M"));
    return *size;
  });
  m.def("gpu_slugs", [] {
    std::vector<std::string> out;
    for (const sim::Gpu& g : sim::all_gpus()) out.push_back(g.slug);
    return out;
  });
  m.def("canonical_gpu", [](const std::string& text) { return sim::canonical(sim::parse_gpu(text)); });
  m.def("gpu_record", [](const std::string& text) { return to_python(sim::to_json(sim::parse_gpu(text))); });
  // Every name of a figure: the name that texts use, and the unit of a bare number.
  m.def("gpu_figures", [] {
    py::dict out;
    for (const sim::FigureField& f : sim::figure_fields()) {
      using Kind = sim::FigureKind;
      const char* unit = f.kind == Kind::bytes ? "B" : f.kind == Kind::bandwidth ? "B/s" : f.kind == Kind::seconds ? "s"
                         : f.kind == Kind::hertz ? "Hz" : f.kind == Kind::watts ? "W" : f.kind == Kind::flops ? "FLOPS" : "";
      for (const std::string_view name : {f.key, f.short_key})
        if (!name.empty()) out[py::str(std::string(name))] = py::make_tuple(std::string(f.key), unit);
    }
    return out;
  });
  m.def("engine_slugs", [] {
    std::vector<std::string> out;
    for (const sim::Engine& e : sim::all_engines()) out.emplace_back(e.slug);
    return out;
  });

  py::class_<ModelHandle>(m, "ModelHandle")
      .def_property_readonly("slug", [](const ModelHandle& h) { return h.model->slug; })
      .def_property_readonly("name", [](const ModelHandle& h) { return h.model->name; })
      .def_property_readonly("warnings", [](const ModelHandle& h) { return h.model->warnings; })
      .def("record", [](const ModelHandle& h) { return to_python(models::to_json(*h.model)); })
      .def("storage", &storage);
  m.def("model_slugs", [] {
    std::vector<std::string> out;
    for (const models::Model& model : models::all_models()) out.push_back(model.slug);
    return out;
  });
  m.def("load_model", [](const std::string& slug_or_path) { return shared(models::load_model(slug_or_path)); });
  m.def("import_config", [](const std::string& text, const std::string& origin) { return shared(models::import_config(text, origin)); });
}

}  // namespace kvatlas::python
