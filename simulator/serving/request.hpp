// What a serving run is asked: requests with their arrival, lengths and shareable prefixes, and the streams that make them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/units.hpp"

namespace kvatlas::sim {

/// A stretch of a prompt that other requests may begin with too. Equal ids at equal places mean equal tokens.
struct Segment {
  std::uint64_t id = 0;
  std::int32_t tokens = 0;
};

/// One request of a stream. Times are seconds from the start of the run.
struct Request {
  double arrive_s = 0;
  std::int32_t prompt = 0, output = 1;
  std::uint32_t first_segment = 0, segments = 0;  // of Stream::segments, from the start of the prompt on
  std::uint64_t output_segment = 0;               // id under which prompt tail and output can be found again; 0 = nobody asks
  std::int64_t next = -1;                         // the following turn of the conversation, sent when this one has finished
  bool later_turn = false;                        // sent by its predecessor, not by a clock
};

/// A whole stream: open loop by arrival times, or closed loop where `users` send one after another.
struct Stream {
  std::vector<Request> requests;
  std::vector<Segment> segments;
  std::int32_t users = 0;                         // 0 = open loop
  std::uint64_t warm_segment = 0;                 // in the prefix cache from the start; 0 = none
  std::int32_t warm_tokens = 0;
};

/// Requests of one kind.
struct StreamRecipe {
  std::int64_t requests = 1000;
  Tokens prompt{0}, output{0};
  double spread = 0;        // lengths are uniform within this share of the mean, 0 to 1
  double prefix_hit = 0;    // share of every prompt that all prompts begin with
  int turns = 1;            // of a conversation; a turn's prompt is all that came before it and `prompt` more tokens
  double rate = 0;          // Poisson arrivals, requests/s
  int users = 0;            // closed loop instead
  bool warm = false;        // the common prefix is in the cache from the start
  std::uint64_t seed = 1;
};

/// throws InvalidArgument naming the field
Stream make_stream(const StreamRecipe& recipe);

/// Reads a trace file by its columns: the Azure LLM inference traces (CSV: TIMESTAMP, ContextTokens, GeneratedTokens) or
/// Mooncake's (one JSON object a line: timestamp in ms, input_length, output_length, optionally hash_ids of 512-token blocks).
/// `speed` above 1 squeezes the arrivals. At most `most` requests are kept, in order of arrival; 0 = all.
/// throws IoError, InvalidArgument naming line, column and value
Stream read_trace(const std::string& path, double speed = 1.0, std::int64_t most = 0);

/// The same from text already read; `name` stands in messages.
Stream parse_trace(const std::string& text, const std::string& name, double speed = 1.0, std::int64_t most = 0);

}  // namespace kvatlas::sim
