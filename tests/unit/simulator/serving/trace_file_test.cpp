#include <string>

#include "core/errors.hpp"
#include "simulator/serving/request.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

std::string refusal(const std::string& text) {
  try {
    parse_trace(text, "t");
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("Azure traces of both years are read by their columns", "[unit]") {
  const Stream a = parse_trace("TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\r\n", "a");
  REQUIRE(a.requests.size() == 2);
  REQUIRE(a.requests[0].arrive_s == 0);
  REQUIRE(a.requests[0].prompt == 374);
  REQUIRE(a.requests[0].output == 44);
  REQUIRE(a.requests[1].arrive_s == Approx(4.314579).margin(1e-6));
  // Over midnight, the end of February and a time zone; other columns and their order do not matter.
  const Stream b = parse_trace("GeneratedTokens,x,TIMESTAMP,ContextTokens\n5,q,2024-02-29 23:59:59.5+00:00,100.0\n6,q,2024-03-01 01:00:00.25+01:00,0\n", "b");
  REQUIRE(b.requests[1].arrive_s == Approx(0.75).margin(1e-6));
  REQUIRE(b.requests[1].prompt == 1);
  REQUIRE(b.requests[0].output == 5);
}

TEST_CASE("Mooncake traces bring their block hashes, the partial last block apart", "[unit]") {
  const Stream s = parse_trace(R"({"timestamp": 27482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 2353]}
{"timestamp": 30535, "input_length": 7322, "output_length": 490, "hash_ids": [0]}
)", "m", 2.0);
  REQUIRE(s.requests.size() == 2);
  REQUIRE(s.requests[0].segments == 2);
  REQUIRE(s.segments[0].tokens == 512);
  REQUIRE(s.segments[0].id != s.segments[1].id);
  REQUIRE(s.segments[2].id != 0);
  REQUIRE(s.requests[1].arrive_s == Approx(3.053 / 2));
}

TEST_CASE("a broken trace gets one sentence with line, column and value", "[unit]") {
  REQUIRE(refusal("") == "t is empty, must be an Azure LLM trace (CSV) or a Mooncake trace (JSON lines)");
  REQUIRE(refusal("a,b\n1,2\n").find("t lacks column TIMESTAMP; a trace has") == 0);
  REQUIRE(refusal("TIMESTAMP,ContextTokens,GeneratedTokens\n") == "t has no requests below its first line");
  REQUIRE(refusal("TIMESTAMP,ContextTokens,GeneratedTokens\n0,1,2\n1,-4,2\n") == "t line 3: ContextTokens is \"-4\", must be a whole number from 0 to 67108864");
  REQUIRE(refusal("TIMESTAMP,ContextTokens,GeneratedTokens\n0,1\n") == "t line 2 has 2 cells, must have 3");
  for (const char* time : {"yesterday", "2023-13-01 00:00:00", "2023-11-16 18:15", "2023-11-16 18:15:46.5 pm", "-3", "nan"})
    REQUIRE(refusal(std::string("TIMESTAMP,ContextTokens,GeneratedTokens\n") + time + ",1,2\n").find(std::string("t line 2: TIMESTAMP is \"") + time + "\", must be a time like") == 0);
  REQUIRE(refusal("{\"timestamp\": 1, \"input_length\": 5}\n") == "t line 1: output_length is \"missing\", must be a number");
  REQUIRE(refusal("{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": 3}\n") == "t line 1: hash_ids is \"3\", must be an array of numbers");
  REQUIRE(refusal("{\"timestamp\": 1,\n") == "t line 1: the line is \"{\"timestamp\": 1,\", must be one JSON object");
  REQUIRE_THROWS_AS(read_trace("/nowhere/trace.csv"), IoError);
}
