#include "answers/checking.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "answers/user_kernel.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/io/file.hpp"
#include "core/io/npy.hpp"
#include "tests/catch.hpp"
#include "tests/support/program.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;
using answers::Check, answers::KernelResults, answers::VectorCase;
using testing::kvatlas_run;

namespace {

const std::filesystem::path kCommitted = std::filesystem::path(KVATLAS_SOURCE_DIR) / "tests/vectors";

VectorCase committed(const char* method) { return answers::read_case(kCommitted / method / "case0"); }

io::RawTensor as_type(const NamedTensor& from, Dtype dtype) {
  io::RawTensor t{.type = dtype == Dtype::f32 ? io::ElementType::f32 : dtype == Dtype::f16 ? io::ElementType::f16 : io::ElementType::bf16, .dims = from.dims, .bytes = {}};
  t.bytes.resize(from.values.size() * static_cast<std::size_t>(bytes_of(dtype)));
  num::store(dtype, from.values, t.bytes);
  return t;
}

/// Everything of the case, as a kernel without a fault hands it over.
KernelResults whole(const VectorCase& c, Dtype dtype = Dtype::f32) {
  KernelResults r;
  for (const auto& [name, tensor] : c.outputs) r.tensors[name] = as_type(tensor, dtype);
  for (const auto& stage : c.stages)
    for (const auto& b : stage.buffers) r.stages[stage.name][b.name] = b.bytes;
  return r;
}

void flip(io::RawTensor& t, std::size_t element, unsigned bits) {
  std::uint32_t word = 0;
  const auto width = static_cast<std::size_t>(io::bytes_of(t.type));
  std::memcpy(&word, t.bytes.data() + element * width, width);
  word ^= bits;
  std::memcpy(t.bytes.data() + element * width, &word, width);
}

}  // namespace

TEST_CASE("a kernel with the reference's bits is equal in any float type, and what it leaves out is named", "[unit][vectors]") {
  const VectorCase c = committed("kivi");
  for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
    const Check check = answers::check_results(c, whole(c, dtype));
    REQUIRE(check.equal());
    REQUIRE(check.first() == nullptr);
    REQUIRE(check.not_given.empty());
  }
  KernelResults some = whole(c);
  some.tensors.clear();
  some.stages.erase("end");
  some.stages["prompt"].erase("layer0/k_codes/head0");
  const Check check = answers::check_results(c, some);
  REQUIRE(check.equal());
  REQUIRE(check.not_given == std::vector<std::string>{"prompt/layer0/k_codes/head0", "out", "buffers of stage end"});
}

TEST_CASE("the first stage that differs, the first element and the histogram of distances say where to look", "[unit][vectors]") {
  const VectorCase c = committed("kivi");
  const auto& dims = c.outputs.at("out").dims;  // [1, 1, 12, 64]: nine tokens of a prompt, three of decoding
  REQUIRE(dims == std::vector<std::int64_t>{1, 1, 12, 64});
  KernelResults r = whole(c);
  flip(r.tensors["out"], 10 * 64 + 5, 3);  // decode step 1: at most 3 ULP
  Check check = answers::check_results(c, r);
  REQUIRE_FALSE(check.equal());
  REQUIRE(check.first()->stage == "attention of decoding");
  REQUIRE(check.first()->first == std::vector<std::int64_t>{0, 0, 10, 5});
  REQUIRE(check.first()->different == 1);
  REQUIRE((check.first()->max_ulp >= 1 && check.first()->max_ulp <= 3));
  REQUIRE(check.first()->ulp.front() == std::pair<std::string, std::int64_t>{"0", 3 * 64 - 1});
  REQUIRE(check.differences.size() == answers::check_results(c, whole(c)).differences.size());

  r.stages["prompt"]["layer0/v_scales/head0"][3] ^= std::byte{1};  // before any attention: the place to look
  check = answers::check_results(c, r);
  REQUIRE(check.first()->stage == "prompt");
  REQUIRE(check.first()->name == "layer0/v_scales/head0");
  REQUIRE(check.first()->first == std::vector<std::int64_t>{3});
  REQUIRE(std::abs(check.first()->got - check.first()->expected) == 1.0);

  // The decode steps alone count tokens from the first of them, in the type that was handed over.
  KernelResults decode;
  NamedTensor last{.dims = {1, 1, 3, 64}, .values = {c.outputs.at("out").values.end() - 3 * 64, c.outputs.at("out").values.end()}};
  decode.tensors["decode"] = as_type(last, Dtype::bf16);
  REQUIRE(answers::check_results(c, decode).equal());
  flip(decode.tensors["decode"], 64 + 7, 1);
  check = answers::check_results(c, decode);
  REQUIRE(check.first()->first == std::vector<std::int64_t>{0, 0, 1, 7});
  REQUIRE(check.first()->max_ulp == 1);

  KernelResults odd = whole(c);
  odd.tensors["out"].dims = {1, 12, 64};
  odd.stages["end"]["layer0/k_codes/head0"].pop_back();
  check = answers::check_results(c, odd);
  REQUIRE(check.first()->note == "has shape [1, 12, 64], must have [1, 1, 12, 64]");
  REQUIRE(answers::spell(c, check).find("end/layer0/k_codes/head0: has ") != std::string::npos);
}

TEST_CASE("zeros of both signs are 0 ULP apart and differ, NaN is a distance of its own", "[unit][vectors]") {
  VectorCase c = committed("kivi");
  float* values = c.outputs.at("out").values.data();
  values[0] = 0.0F;
  KernelResults r = whole(c);
  flip(r.tensors["out"], 0, 0x80000000U);
  flip(r.tensors["out"], 1, 0x7FFFFFFFU ^ (num::bits_of(values[1]) & 0x7FFFFFFFU));
  const Check check = answers::check_results(c, r);
  REQUIRE(check.first()->different == 2);
  REQUIRE(check.first()->max_ulp == 0);
  REQUIRE(check.first()->ulp == std::vector<std::pair<std::string, std::int64_t>>{{"0", 9 * 64 - 1}, {"NaN", 1}});
  const answers::Json record = answers::describe(c, check);
  REQUIRE(record["first"] == "attention of the prompt/out");
  REQUIRE(record["equal"] == false);
}

TEST_CASE("verify --case compares a folder of arrays, exits with 1 where bits differ and prints the document of the Python package", "[unit][vectors]") {
  const VectorCase c = committed("kivi");
  const std::string folder = (kCommitted / "kivi/case0").string();
  const testing::TempFolder mine;
  const auto path = std::filesystem::path(mine.file(""));
  const auto same = kvatlas_run({"verify", "--case", folder, "--outputs", folder, "--json"});  // the case's own files
  REQUIRE(same.err.empty());
  REQUIRE(same.code == 0);
  REQUIRE(same.json()["equal"] == true);
  for (const char* key : {"case", "method", "equal", "first", "differences", "not_given", "provenance"}) REQUIRE(same.json().contains(key));

  const std::string weights = (kCommitted / "transmla/case0").string();
  REQUIRE(kvatlas_run({"verify", "--case", weights, "--outputs", weights}).code == 0);

  io::RawTensor out = as_type(c.outputs.at("out"), Dtype::bf16);
  flip(out, 64, 1);
  out.type = io::ElementType::u16;
  io::write_npy((path / "out.bf16.npy").string(), out);
  std::filesystem::create_directories(path / "prompt/layer0/k_codes");
  const auto& codes = *std::ranges::find(c.stages[0].buffers, "layer0/k_codes/head0", &answers::StoredBuffer::name);
  io::write_npy((path / "prompt/layer0/k_codes/head0.npy").string(), io::RawTensor{.type = io::ElementType::u8, .dims = {static_cast<std::int64_t>(codes.bytes.size())}, .bytes = codes.bytes});
  const auto run = kvatlas_run({"verify", "--case", folder, "--outputs", path.string()});
  REQUIRE(run.code == 1);
  REQUIRE(run.out.find("prompt/layer0/k_codes/head0: " + std::to_string(codes.bytes.size()) + " elements, all bits equal") != std::string::npos);
  REQUIRE(run.out.find("attention of the prompt/out: 1 of 576 elements differ, at most 1 ULP") != std::string::npos);
  REQUIRE(run.out.find("look at attention of the prompt/out first; its elements by ULP: 0: 575, 1: 1") != std::string::npos);
  REQUIRE(run.out.find("not given: prompt/layer0/k_scales/head0") != std::string::npos);
}

TEST_CASE("a library with the C ABI runs on a case: its value rows have the reference's bits, its outputs are near", "[unit][vectors]") {
  const VectorCase c = committed("full");
  const Check check = answers::check_results(c, answers::run_library(c, KVATLAS_EXAMPLE_KERNEL));
  for (const answers::Difference& d : check.differences) {
    CAPTURE(d.stage, d.name);
    if (d.name == "out") CHECK((d.note.empty() && d.max_abs < 1e-3));
    else CHECK(d.equal());
  }
  REQUIRE(check.not_given.front() == "prompt/layer0/k_rows/head0");
  const auto run = kvatlas_run({"verify", "--case", "full/case0", "--library", KVATLAS_EXAMPLE_KERNEL, "--json"});
  REQUIRE(run.json()["method"] == "full");
  REQUIRE_THROWS_WITH(answers::run_library(committed("kivi"), KVATLAS_EXAMPLE_KERNEL), std::string(KVATLAS_EXAMPLE_KERNEL) + ": kvatlas_run_case answered 2, must answer 0");
}

TEST_CASE("cases, folders and options that do not fit are refused in one sentence", "[unit][vectors]") {
  const std::string folder = (kCommitted / "kivi/case0").string();
  const testing::TempFolder empty;
  const std::string nothing = empty.file("");
  const auto says = [](std::vector<std::string> args) {
    const auto run = kvatlas_run(std::move(args));
    REQUIRE(run.code != 0);
    return run.err;
  };
  REQUIRE(says({"verify", "--case", folder}) == "kvatlas verify: --case needs --outputs DIR or --library FILE, one of the two\n");
  REQUIRE(says({"verify", "--outputs", folder}) == "kvatlas verify: --outputs needs --case CASE\n");
  REQUIRE(says({"verify", "--case", folder, "--outputs", folder, "--long"}) == "kvatlas verify: --long is of the kernels of this build, --case of yours: give one of the two\n");
  REQUIRE(says({"verify", "--case", "kivi", "--outputs", folder}) == "kvatlas verify: case is \"kivi\", must be a folder of a case, or METHOD/caseN\n");
  REQUIRE(says({"verify", "--case", "kivi/case9", "--outputs", folder}) == "kvatlas verify: case is \"kivi/case9\", must be a folder of a case, or end in case0 to case2\n");
  REQUIRE(says({"verify", "--case", folder, "--outputs", nothing}) ==
          "kvatlas verify: " + nothing + ": holds nothing to compare, must hold any of out.npy, decode.npy, buffers_prompt.npy, buffers_end.npy\n");
  REQUIRE(says({"verify", "--case", folder, "--outputs", nothing + "/none"}) == "kvatlas verify: " + nothing + "/none: not a folder, must hold what your kernel made of the case\n");
  REQUIRE(says({"verify", "--case", folder, "--library", folder + "/case.json"}).starts_with("kvatlas verify: " + folder + "/case.json: cannot be loaded: "));
  const VectorCase c = committed("kivi");
  KernelResults r;
  REQUIRE_THROWS_WITH(answers::check_results(c, r), "the kernel handed over nothing to compare");
  r.tensors["result"] = as_type(c.outputs.at("out"), Dtype::f32);
  REQUIRE_THROWS_WITH(answers::check_results(c, r), "array result is not an output of the case");
  r.tensors.clear();
  r.stages["prompt"]["k"] = {};
  REQUIRE_THROWS_WITH(answers::check_results(c, r), "buffer k is not part of stage prompt of the case");
  r.stages.clear();
  r.stages["middle"]["k"] = {};
  REQUIRE_THROWS_WITH(answers::check_results(c, r), "stage middle is not one of the case");
}
