// Sessions: growth, fork, truncate, close, one writer; and their files against every damage.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/digest.h"
#include "base/thrown.h"
#include "engine/harness.h"
#include "engine/session_file.h"

namespace moesaic::engine {
namespace {

class Sessions : public EngineTest {
 protected:
  RequestSpec step(const std::shared_ptr<SessionState>& session, Tokens tokens) {
    RequestSpec spec = forward(std::move(tokens), model::Logits::kLast);
    spec.where = "Session.forward";
    spec.session = session;
    return spec;
  }
};

TEST_P(Sessions, GrowForkTruncate) {
  make();
  auto session = engine_->open_session().get();
  run_one(step(session, prompt(30)));
  Tokens all = prompt(30);
  all.insert(all.end(), {1, 2, 3});
  EXPECT_EQ(run_one(step(session, {1, 2, 3})).outcome.logits, fake_logits(all, 97));
  EXPECT_EQ(session->tokens, all);

  auto child = engine_->fork_session(session, 33).get();
  auto early = engine_->fork_session(session, 20).get();
  EXPECT_EQ(run_one(step(child, {9})).outcome.logits, fake_logits(
                                                          [&] {
                                                            Tokens t = all;
                                                            t.push_back(9);
                                                            return t;
                                                          }(),
                                                          97));
  EXPECT_EQ(run_one(step(session, {8})).outcome.logits, fake_logits(
                                                            [&] {
                                                              Tokens t = all;
                                                              t.push_back(8);
                                                              return t;
                                                            }(),
                                                            97));
  engine_->truncate_session(session, 10).get();
  Tokens ten = prompt(10);
  ten.push_back(4);
  EXPECT_EQ(run_one(step(session, {4})).outcome.logits, fake_logits(ten, 97));
  engine_->close_session(session);  // a fork outlives its parent
  Tokens twenty = prompt(20);
  twenty.push_back(5);
  EXPECT_EQ(run_one(step(early, {5})).outcome.logits, fake_logits(twenty, 97));
  EXPECT_THROW(run_one(step(session, {1})), ClosedError);
  EXPECT_THROW(engine_->fork_session(session, 1).get(), ClosedError);
  EXPECT_THROW(engine_->truncate_session(session, 1).get(), ClosedError);
  EXPECT_THROW(engine_->save_session(session).get(), ClosedError);
  EXPECT_THROW(engine_->truncate_session(early, 99).get(), ArgumentError);
  EXPECT_THROW(engine_->fork_session(early, -1).get(), ArgumentError);
  engine_->close_session(child);
  engine_->close_session(early);
  engine_->close_session(early);
  engine_->clear_cache().get();
  EXPECT_EQ(log_->open_sequences, 0);
  EXPECT_EQ(log_->pages_used, 0);
}

TEST_P(Sessions, AFailedOrCancelledCallLeavesTheSessionAsItWas) {
  FakeOptions fake;
  fake.row_time = 1ms;
  fake.poison_token = 96;
  make(fake);
  auto session = engine_->open_session().get();
  const Tokens base = {1, 2, 3};
  run_one(step(session, base));
  EXPECT_EQ(run_one(step(session, {4, 96})).outcome.finish, Finish::kFailed);
  EXPECT_EQ(session->tokens, base);
  const auto channel = std::make_shared<Channel>();
  const auto request = start(step(session, prompt(300)), channel);
  std::this_thread::sleep_for(100ms);  // some chunks are through
  engine_->cancel(request);
  wait_all({request}, *channel);
  EXPECT_EQ(session->tokens, base);
  EXPECT_EQ(run_one(step(session, {4})).outcome.logits, fake_logits({1, 2, 3, 4}, 97));
}

TEST_P(Sessions, OneWriterAtATime) {
  FakeOptions fake;
  fake.row_time = 1ms;
  make(fake);
  auto session = engine_->open_session().get();
  EXPECT_THROW(
      engine_->submit({step(session, {1}), step(session, {2})}, std::make_shared<Channel>()),
      ArgumentError);
  const auto channel = std::make_shared<Channel>();
  const auto request = start(step(session, prompt(100)), channel);
  EXPECT_THROW(start(step(session, {1}), std::make_shared<Channel>()), ArgumentError);
  EXPECT_THROW(engine_->truncate_session(session, 0).get(), ArgumentError);
  engine_->close_session(session);  // ends when the call does
  wait_all({request}, *channel);
  engine_->clear_cache().get();
  EXPECT_EQ(log_->open_sequences, 0);
}

TEST_P(Sessions, AnAbandonedOneIsClosed) {
  make();
  auto session = engine_->open_session().get();
  run_one(step(session, prompt(30)));
  for (int i = 0; i < 20; ++i) {
    engine_->abandon(engine_->open_session());
    engine_->abandon(engine_->fork_session(session, 20));
    engine_->abandon(engine_->fork_session(session, 99));  // fails: there is none to close
  }
  engine_->clear_cache().get();
  EXPECT_EQ(log_->open_sequences, 1);
}

TEST_P(Sessions, ManyForwardTogether) {
  make();
  std::vector<std::shared_ptr<SessionState>> sessions;
  std::vector<RequestSpec> specs;
  for (int i = 0; i < 10; ++i) {
    sessions.push_back(engine_->open_session().get());
    specs.push_back(step(sessions.back(), prompt(3 + static_cast<std::size_t>(i), i)));
  }
  const auto ended = run(specs);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(ended[i].outcome.logits, fake_logits(prompt(3 + static_cast<std::size_t>(i), i), 97));
  }
}

class SessionFiles : public Sessions {
 protected:
  void SetUp() override {
    make();
    folder_ =
        std::filesystem::temp_directory_path() / ("moesaic_session_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "s.bin").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::vector<std::uint8_t> bytes() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::vector<std::uint8_t>& content) const {
    std::ofstream out(path_, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(content.data()), static_cast<long>(content.size()));
  }
  // With a digest that fits, so that the checks behind it are reached.
  void write_signed(std::vector<std::uint8_t> content) const {
    content.erase(content.end() - 32, content.end());
    Sha256 digest;
    digest.update(content.data(), content.size());
    for (const std::uint8_t byte : digest.finish()) content.push_back(byte);
    write(content);
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_P(SessionFiles, ComeBackAsTheyWere) {
  auto session = engine_->open_session().get();
  run_one(step(session, prompt(37)));
  write_session(path_, engine_->facts().identity, engine_->save_session(session).get());
  auto loaded = engine_->load_session(read_session(path_, engine_->facts())).get();
  EXPECT_EQ(loaded->tokens, prompt(37));
  EXPECT_EQ(run_one(step(loaded, {5})).outcome.logits, run_one(step(session, {5})).outcome.logits);
  // An empty session too; and no temporary file stays.
  auto empty = engine_->open_session().get();
  write_session(path_, engine_->facts().identity, engine_->save_session(empty).get());
  EXPECT_TRUE(read_session(path_, engine_->facts()).tokens.empty());
  int files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_)) ++files;
  EXPECT_EQ(files, 1);
}

TEST_P(SessionFiles, EveryTruncationAndEveryFlippedByteIsRefused) {
  auto session = engine_->open_session().get();
  run_one(step(session, prompt(5)));
  write_session(path_, engine_->facts().identity, engine_->save_session(session).get());
  const std::vector<std::uint8_t> good = bytes();
  ASSERT_EQ(good.size(), 32U + 6 + 5 * 4 + 5 * 16 + 32);
  for (std::size_t n = 0; n < good.size(); ++n) {
    write({good.begin(), good.begin() + static_cast<long>(n)});
    EXPECT_THROW(read_session(path_, engine_->facts()), FormatError) << n;
  }
  for (std::size_t i = 0; i < good.size(); ++i) {
    for (const int bit : {0, 7}) {
      std::vector<std::uint8_t> bad = good;
      bad[i] = static_cast<std::uint8_t>(bad[i] ^ (1 << bit));
      write(bad);
      EXPECT_THROW(read_session(path_, engine_->facts()), FormatError) << i;
    }
  }
  std::vector<std::uint8_t> longer = good;
  longer.push_back(0);
  write(longer);
  EXPECT_THROW(read_session(path_, engine_->facts()), FormatError);
  write(good);
  EXPECT_NO_THROW(read_session(path_, engine_->facts()));
}

TEST_P(SessionFiles, ASignedLieIsRefusedToo) {
  auto session = engine_->open_session().get();
  run_one(step(session, prompt(5)));
  write_session(path_, engine_->facts().identity, engine_->save_session(session).get());
  const std::vector<std::uint8_t> good = bytes();
  for (const std::size_t at : {8U, 12U, 16U, 17U, 20U, 23U, 24U, 27U, 31U, 32U}) {
    for (const int value : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
      std::vector<std::uint8_t> bad = good;
      if (bad[at] == value) continue;
      bad[at] = static_cast<std::uint8_t>(value);
      write_signed(bad);
      EXPECT_THROW(read_session(path_, engine_->facts()), FormatError) << at << " " << value;
    }
  }
  std::vector<std::uint8_t> size = good;  // 1 token and 96 bytes are as long as 5 and 80
  size[16] = 1;
  size[24] = 96;
  write_signed(size);
  EXPECT_THROW(read_session(path_, engine_->facts()), FormatError);
  std::vector<std::uint8_t> token = good;
  token[32 + 6] = 98;  // past the vocabulary
  write_signed(token);
  EXPECT_THROW(read_session(path_, engine_->facts()), FormatError);
  write_signed(good);
  EXPECT_NO_THROW(read_session(path_, engine_->facts()));
}

TEST_P(SessionFiles, ThoseOfOtherReleasesAreRefusedByName) {
  auto session = engine_->open_session().get();
  run_one(step(session, prompt(5)));
  write_session(path_, engine_->facts().identity, engine_->save_session(session).get());
  const std::vector<std::uint8_t> good = bytes();
  ASSERT_EQ(good[8], 2);
  const auto error_of = [&](std::uint8_t version) {
    std::vector<std::uint8_t> other = good;
    other[8] = version;
    write_signed(other);
    return moesaic::testing::thrown<FormatError>([&] { read_session(path_, engine_->facts()); });
  };
  const std::string older = error_of(1);
  EXPECT_NE(older.find("got version 1, need 2: an older release wrote it"), std::string::npos)
      << older;
  const std::string newer = error_of(3);
  EXPECT_NE(newer.find("got version 3, need 2: a newer release wrote it"), std::string::npos)
      << newer;
}

TEST_P(SessionFiles, TheSystemsRefusalsAreIoErrors) {
  EXPECT_THROW(read_session((folder_ / "none").string(), engine_->facts()), IoError);
  EXPECT_THROW(read_session(folder_.string(), engine_->facts()), IoError);
  EXPECT_THROW(read_session("/dev/zero", engine_->facts()), IoError);
  const std::string fifo = (folder_ / "fifo").string();
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THROW(read_session(fifo, engine_->facts()), IoError);
  EXPECT_THROW(write_session((folder_ / "no" / "folder").string(), "fake-1", {}), IoError);
  if (std::filesystem::exists("/dev/full")) {
    std::filesystem::create_directory(folder_ / "d");
    EXPECT_THROW(write_session((folder_ / "d").string(), "fake-1", {}), IoError);  // a folder
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      files += entry.path().string().find(".tmp.") != std::string::npos ? 1 : 0;
    }
    EXPECT_EQ(files, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Runner, Sessions, ::testing::Bool(), ahead_name);
INSTANTIATE_TEST_SUITE_P(Runner, SessionFiles, ::testing::Bool(), ahead_name);

}  // namespace
}  // namespace moesaic::engine
