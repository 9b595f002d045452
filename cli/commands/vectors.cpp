// vectors: inputs, packed bytes and outputs of a method on small cases, as files for authors of kernels; and the way back.
#include <algorithm>
#include <filesystem>
#include <ostream>

#include "answers/vectors.hpp"
#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "reference/registry.hpp"

namespace kvatlas::cli {

namespace {

const Usage& vectors_usage() {
  static const Usage u{.command = "vectors", .positional = "",
                       .example = "kvatlas vectors --method kivi --out vectors",
                       .options = {Option::text("method", "M", "slug of a method, or all"), Option::text("out", "DIR", "folder; each case becomes DIR/METHOD/CASE"),
                                   Option::integer("cases", 1, 16, "cases of a method, different in shape and parameters", "3"),
                                   Option::text("check", "DIR", "instead: run the reference on the inputs of every case below DIR and compare every bit")},
                       .note = "A case is case.json (shape, parameters, order of work, hashes, where each packed buffer lies) and\n"
                               ".npy files: inputs before RoPE, outputs, all buffers after the prompt and at the end."};
  return u;
}

/// Folders below `root` that hold a case, in order.
std::vector<std::filesystem::path> folders_of_cases(const std::string& root) {
  std::vector<std::filesystem::path> out;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator at(root, error), end; !error && at != end; at.increment(error))
    if (at->path().filename() == "case.json") out.push_back(at->path().parent_path());
  if (error) throw IoError(cat(root, ": cannot be read: ", error.message()));
  if (out.empty()) throw IoError(cat(root, ": no case.json in it or below it"));
  std::sort(out.begin(), out.end());
  return out;
}

int check(const Parsed& p, const Streams& io) {
  Json rows = Json::array();
  std::size_t wrong = 0, cases = 0;
  for (const auto& folder : folders_of_cases(p.text("check"))) {
    const answers::VectorCase stored = answers::read_case(folder);
    const std::vector<std::string> differences = answers::differences(stored, answers::rerun(stored));
    ++cases;
    wrong += differences.empty() ? 0 : 1;
    rows.push_back({{"folder", folder.string()}, {"method", stored.choice.canonical()}, {"equal", differences.empty()}, {"differences", differences}, {"provenance", "computed"}});
    for (const std::string& sentence : differences) io.err << "kvatlas vectors: " << folder.string() << ": " << sentence << "\n";
  }
  if (p.json()) print(io, rows);
  else io.out << cases << " cases, " << wrong << " differ\n";
  return wrong == 0 ? kDone : kFailed;
}

}  // namespace

int run_vectors(const Arguments& args, const Streams& io) {
  const auto parsed = parse(vectors_usage(), args, io);
  if (!parsed) return kDone;
  const Parsed& p = *parsed;
  if (p.has("check")) {
    for (const char* name : {"method", "out", "cases"})
      if (p.given(name)) throw UsageError(cat("--", name, " writes vectors, --check reads them: give one of the two"));
    return check(p, io);
  }
  if (!p.has("method") || !p.has("out")) throw UsageError("needs --method M and --out DIR, or --check DIR");
  std::vector<const Method*> methods;
  if (p.text("method") == "all") {
    methods.assign(all_methods().begin(), all_methods().end());
  } else {
    methods.push_back(&find_method(p.text("method")));
  }
  Json rows = Json::array();
  Table table({{"case"}, {"method"}, {"tokens", Align::right}, {"bytes", Align::right}});
  for (const Method* m : methods) {
    std::vector<answers::VectorCase> cases;
    try {
      cases = answers::vector_cases(*m, static_cast<int>(p.integer("cases")));
    } catch (const Unsupported& e) {
      if (methods.size() == 1) throw;
      io.err << "kvatlas vectors: " << e.what() << "\n";
      continue;
    }
    for (const answers::VectorCase& c : cases) {
      const auto folder = std::filesystem::path(p.text("out")) / m->slug / c.name;
      const std::int64_t bytes = answers::write_case(c, folder);
      rows.push_back({{"folder", folder.string()}, {"method", c.choice.canonical()}, {"kind", answers::name_of(c.kind)}, {"bytes", bytes}, {"provenance", "computed"}});
      table.add({folder.string(), c.choice.canonical(), spell_count(static_cast<double>(c.prompt + c.decode)), spell_bytes(static_cast<double>(bytes))});
    }
  }
  if (p.json()) print(io, rows);
  else table.print(io.out);
  return kDone;
}

}  // namespace kvatlas::cli
