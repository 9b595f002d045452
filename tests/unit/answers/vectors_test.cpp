#include "answers/vectors.hpp"

#include <algorithm>
#include <filesystem>
#include <set>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "core/io/npy.hpp"
#include "reference/registry.hpp"
#include "tests/catch.hpp"
#include "tests/support/program.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;
using testing::kvatlas_run;

namespace {

const std::filesystem::path kCommitted = std::filesystem::path(KVATLAS_SOURCE_DIR) / "tests/vectors";

}  // namespace

TEST_CASE("every method has committed vectors, and the reference makes the same bits of their inputs", "[unit][vectors]") {
  for (const Method* m : all_methods()) {
    CAPTURE(m->slug);
    const answers::VectorCase stored = answers::read_case(kCommitted / m->slug / "case0");
    REQUIRE(stored.choice.method == m);
    REQUIRE(answers::differences(stored, answers::rerun(stored)) == std::vector<std::string>{});
  }
  std::set<std::string> folders;
  for (const auto& entry : std::filesystem::directory_iterator(kCommitted))
    if (entry.is_directory()) folders.insert(entry.path().filename().string());
  REQUIRE(folders.size() == all_methods().size());
}

TEST_CASE("the committed vectors stay below three megabytes", "[unit][vectors]") {
  std::uintmax_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kCommitted))
    if (entry.is_regular_file()) bytes += entry.file_size();
  REQUIRE(bytes < 3'200'000);
}

TEST_CASE("a case written and read again is the same", "[unit][vectors]") {
  testing::TempFolder folder;
  for (const char* method : {"kivi", "snapkv", "hydragen", "transmla", "vqkv", "specpv"}) {
    CAPTURE(method);
    const auto cases = answers::vector_cases(find_method(method), 2);
    REQUIRE(!cases.empty());
    for (const answers::VectorCase& c : cases) {
      answers::write_case(c, folder.file(method) + c.name);
      const answers::VectorCase back = answers::read_case(folder.file(method) + c.name);
      REQUIRE(answers::differences(c, back).empty());
      REQUIRE(back.choice == c.choice);
      REQUIRE(back.shape == c.shape);
      REQUIRE(answers::describe(back) == answers::describe(c));
    }
  }
}

TEST_CASE("the case of speculation has rounds that draft, accept, and verify in part", "[unit][vectors]") {
  const answers::VectorCase c = answers::vector_cases(find_method("specpv"), 1).front();
  const NamedTensor& emitted = c.outputs.at("emitted");
  REQUIRE(emitted.dims == std::vector<std::int64_t>{c.decode, 4});
  std::int64_t accepted = 0;
  for (std::size_t i = 0; i < emitted.values.size(); ++i)
    if (i % 4 > 0) accepted += emitted.values[i] >= 0 ? 1 : 0;
  CHECK(accepted > 2);
  // Behind the prompt a partial round feeds the last token and six drafted ones; a full one also what only partial ones saw.
  const auto rows = c.outputs.at("fed").dims[0] - (c.prompt - 1);
  CHECK(rows > 7 * c.decode);
  CHECK(c.outputs.at("out").dims == std::vector<std::int64_t>{1, 2, rows + c.prompt - 1, 16});
  // Without the partial cache the same drafts are judged by all of the text, and other rows come out.
  answers::VectorCase full = c;
  full.choice = parse_choice("specpv:block=4,sink_blocks=1,retrieval_blocks=2,window_blocks=1,buffer=6,tree_size=6,depth=3,partial=false");
  REQUIRE(!answers::differences(c, answers::rerun(full)).empty());
}

TEST_CASE("cases say something of the method: what a plain cache answers differs", "[unit][vectors]") {
  for (const char* method : {"kivi", "h2o", "quest", "xattention"}) {
    CAPTURE(method);
    answers::VectorCase c = answers::vector_cases(find_method(method), 1).front();
    const answers::VectorCase own = c;
    c.choice = parse_choice("full");
    REQUIRE(!answers::differences(own, answers::rerun(c)).empty());
  }
}

TEST_CASE("a flipped bit of a stored file is found by its hash, a changed reference by its first difference", "[unit][vectors]") {
  testing::TempFolder folder;
  const answers::VectorCase c = answers::vector_cases(find_method("fp8_kv"), 1).front();
  answers::write_case(c, folder.file("case"));
  const std::string path = folder.file("case") + "/buffers_end.npy";
  std::vector<std::byte> bytes = io::read_file(path);
  bytes.back() ^= std::byte{1};
  io::write_file(path, bytes);
  REQUIRE_THROWS_WITH(answers::read_case(folder.file("case")), Catch::Contains("buffers_end.npy: hash is ") && Catch::Contains("case.json states"));

  answers::VectorCase other = c;
  other.stages[1].buffers[0].bytes[0] ^= std::byte{4};
  other.outputs["out"].values[7] += 1.0F;
  const auto found = answers::differences(c, other);
  REQUIRE(found.size() == 2);
  REQUIRE(found[0].starts_with("out differs first at element 7: "));
  REQUIRE(found[1] == cat("buffer ", c.stages[1].buffers[0].name, " differs first at byte 0 of ", c.stages[1].buffers[0].bytes.size(), " after stage end"));
}

TEST_CASE("a case whose words, sizes or arrays cannot be is refused with its field, value and what is allowed", "[unit][vectors]") {
  testing::TempFolder folder;
  const auto refusal = [&](const char* method, const std::string& from, const std::string& to) {
    const std::string place = folder.file(method), path = place + "/case.json";
    std::filesystem::copy(kCommitted / method / "case0", place, std::filesystem::copy_options::overwrite_existing | std::filesystem::copy_options::recursive);
    std::string text = io::read_text(path);
    const std::size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    io::write_text(path, text.replace(at, from.size(), to));
    try {
      answers::read_case(place);
    } catch (const IoError& e) {
      const std::string sentence = e.what();
      return sentence.starts_with(path + ": ") ? sentence.substr(path.size() + 2) : sentence;
    }
    return std::string("read");
  };
  CHECK(refusal("kivi", R"("dtype": "bf16")", R"("dtype": "fp8")") == "dtype is \"fp8\", must be one of f32, bf16, fp16");
  CHECK(refusal("kivi", R"("kind": "cache")", R"("kind": "bogus")") == "kind is \"bogus\", must be one of cache, group, conversion, speculation");
  CHECK(refusal("kivi", R"("kind": "cache")", R"("kind": "group")") == "kind is \"group\", which kivi does not have");
  CHECK(refusal("kivi", R"("layout": "half_split")", R"("layout": "half")") == "layout is \"half\", must be one of half_split, interleaved");
  CHECK(refusal("kivi", R"("prompt": 9)", R"("prompt": -9)") == "prompt is -9, must be a whole number from 1 to 16777216");
  CHECK(refusal("kivi", R"("prompt": 9)", R"("prompt": 9.5)") == "prompt is 9.5, must be a whole number from 1 to 16777216");
  CHECK(refusal("kivi", R"("prompt": 9)", R"("prompt": 8)") == "inputs has k of shape [1, 1, 12, 64], must have [1, 1, 11, 64]");
  CHECK(refusal("kivi", R"("chunk": 9)", R"("chunk": 0)") == "chunk is 0, must be a whole number from 1 to 16777216");
  CHECK(refusal("kivi", R"("q_heads": 1)", R"("q_heads": 0)") == "q_heads is 0, must be a whole number from 1 to 65536");
  CHECK(refusal("kivi", R"("rotary_dim": 64)", R"("rotary_dim": 66)") == "shape: rotary_dim is 66, must be even and at most k_dim (64)");
  CHECK(refusal("kivi", R"("q": {)", R"("query": {)") == "inputs lacks q");
  CHECK(refusal("kivi", R"("trained": {})", R"("trained": {"w": {"file": "k.npy"}})").find("is missing or of the wrong type") != std::string::npos);
  CHECK(refusal("kivi", R"("name": "end")", R"("name": "finish")") == "stages must be prompt and end, in this order");
  CHECK(refusal("kivi", R"("format": "kvatlas vectors 1")", R"("format": 1)").starts_with("not a case of vectors"));
  CHECK(refusal("transmla", R"("prompt": 0)", R"("prompt": 5)") == "prompt is 5, must be a whole number from 0 to 0");
  CHECK(refusal("specpv", R"("prompt": 30)", R"("prompt": 29)") == "inputs has text of shape [30], must have [29]");
  CHECK(refusal("specpv", R"("emitted": {)", R"("said": {)") == "outputs lacks emitted");
  CHECK(refusal("transmla", R"("w_q": {)", R"("w": {)").starts_with("inputs "));
}

TEST_CASE("vectors: the command writes, checks and refuses with one sentence", "[unit][cli]") {
  testing::TempFolder folder;
  const auto written = kvatlas_run({"vectors", "--method", "kivi", "--out", folder.file("v"), "--cases", "2", "--json"});
  REQUIRE(written.code == 0);
  REQUIRE(written.json().size() == 2);
  const auto checked = kvatlas_run({"vectors", "--check", folder.file("v")});
  REQUIRE(checked.code == 0);
  REQUIRE(checked.out == "2 cases, 0 differ\n");
  // A reference that answers otherwise is told by inputs that are not those of the outputs.
  const io::RawTensor q = io::read_npy(folder.file("v") + "/kivi/case0/q.npy");
  REQUIRE(q.dims.size() == 4);
  REQUIRE(kvatlas_run({"vectors", "--method", "specpv", "--out", folder.file("v")}).code == 0);
  REQUIRE(kvatlas_run({"vectors", "--check", folder.file("v")}).out == "3 cases, 0 differ\n");
  REQUIRE(kvatlas_run({"vectors", "--method", "kivi"}).code == 2);
  REQUIRE(kvatlas_run({"vectors", "--check", folder.file("v"), "--method", "kivi"}).code == 2);
  REQUIRE(kvatlas_run({"vectors", "--check", folder.file("none")}).code == 1);
}

TEST_CASE("arrays of every type but bf16 go through .npy files", "[unit]") {
  for (const io::ElementType type : {io::ElementType::u8, io::ElementType::i64, io::ElementType::f16, io::ElementType::boolean}) {
    const io::RawTensor raw{.type = type, .dims = {3}, .bytes = std::vector<std::byte>(static_cast<std::size_t>(3 * io::bytes_of(type)), std::byte{1})};
    const io::RawTensor back = io::parse_npy(io::npy_bytes(raw, "x"), "x");
    REQUIRE(back.type == type);
    REQUIRE(back.dims == raw.dims);
    REQUIRE(back.bytes == raw.bytes);
  }
  REQUIRE_THROWS_WITH(io::npy_bytes(io::RawTensor{.type = io::ElementType::bf16, .dims = {1}, .bytes = std::vector<std::byte>(2)}, "x"),
                      "x is of type BF16, which .npy files do not have");
}
