// An engine over a FakeRunner, with blocking calls for tests.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "engine/fake_runner.h"

namespace moesaic::engine {

using namespace std::chrono_literals;
using Tokens = std::vector<std::int32_t>;

struct Ended {
  Tokens tokens;
  Outcome outcome;
};

// Waits for all; fails the test after 20 s.
inline std::vector<Ended> wait_all(const std::vector<std::shared_ptr<Request>>& requests,
                                   Channel& channel) {
  std::vector<Ended> ended(requests.size());
  const auto deadline = Clock::now() + 20s;
  std::size_t left = requests.size();
  while (left > 0) {
    if (Clock::now() > deadline) {
      ADD_FAILURE() << "requests hang";
      break;
    }
    for (const std::size_t i : channel.wait_for(50ms)) {
      const Update update = requests[i]->take();
      for (const auto& sampled : update.tokens) ended[i].tokens.push_back(sampled.token);
      if (update.finished) {
        ended[i].outcome = requests[i]->take_outcome();
        --left;
      }
    }
  }
  return ended;
}

// With and without a runner that feeds tokens back by itself.
class EngineTest : public ::testing::TestWithParam<bool> {
 protected:
  void make(FakeOptions fake = {}, EngineOptions options = {}) {
    fake.runs_ahead = GetParam();
    fake_ = fake;
    log_ = std::make_shared<FakeLog>();
    engine_ = std::make_unique<Engine>(std::make_unique<FakeRunner>(fake, log_), options);
  }

  std::vector<Ended> run(std::vector<RequestSpec> specs) {
    const auto channel = std::make_shared<Channel>();
    return wait_all(engine_->submit(std::move(specs), channel), *channel);
  }
  Ended run_one(RequestSpec spec) {
    std::vector<RequestSpec> specs;
    specs.push_back(std::move(spec));
    return std::move(run(std::move(specs))[0]);
  }
  std::shared_ptr<Request> start(RequestSpec spec, const std::shared_ptr<Channel>& channel) {
    std::vector<RequestSpec> specs;
    specs.push_back(std::move(spec));
    return engine_->submit(std::move(specs), channel)[0];
  }

  static RequestSpec forward(Tokens tokens, model::Logits logits = model::Logits::kAll) {
    RequestSpec spec;
    spec.where = "Model.forward";
    spec.tokens = std::move(tokens);
    spec.logits = logits;
    return spec;
  }
  static RequestSpec generate(Tokens tokens, std::int64_t max_tokens, std::uint64_t seed = 1) {
    RequestSpec spec;
    spec.where = "Model.generate";
    spec.tokens = std::move(tokens);
    spec.reuse = true;
    spec.generate.emplace();
    spec.generate->max_tokens = max_tokens;
    spec.generate->sampler.seed = seed;
    return spec;
  }
  // What generate() must give, straight from the definition.
  Tokens reference(Tokens tokens, std::int64_t n, const model::SamplerSpec& sampler) const {
    Tokens out;
    for (std::int64_t i = 0; i < n; ++i) {
      std::vector<float> logits = fake_logits(tokens, fake_.vocab);
      const auto position = static_cast<std::int64_t>(tokens.size());
      out.push_back(model::sample(logits, sampler, position, tokens).token);
      tokens.push_back(out.back());
    }
    return out;
  }
  static Tokens prompt(std::size_t n, std::int32_t from = 1) {
    Tokens tokens(n);
    for (std::size_t i = 0; i < n; ++i) {
      tokens[i] = static_cast<std::int32_t>((from * 31 + static_cast<std::int32_t>(i) * 7) % 97);
    }
    return tokens;
  }
  template <typename E>
  static void expect_error(const Outcome& outcome, const std::string& part) {
    ASSERT_TRUE(outcome.error);
    try {
      std::rethrow_exception(outcome.error);
    } catch (const E& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    } catch (const std::exception& e) {
      ADD_FAILURE() << "another error: " << e.what();
    }
  }

  FakeOptions fake_;
  std::shared_ptr<FakeLog> log_;
  std::unique_ptr<Engine> engine_;
};

inline std::string ahead_name(const ::testing::TestParamInfo<bool>& info) {
  return info.param ? "Ahead" : "StepByStep";
}

}  // namespace moesaic::engine
