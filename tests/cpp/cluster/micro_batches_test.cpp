// How steps are cut: every row once and in order, within the limit, and parts that take equally
// long.
#include "cluster/step/micro_batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace moesaic::cluster {
namespace {

struct Rows {
  std::int64_t start;
  std::int64_t n;
};

model::Step step_of(const std::vector<Rows>& sequences) {
  model::Step step;
  for (const Rows& rows : sequences) {
    model::SequenceStep sequence;
    sequence.start = rows.start;
    sequence.tokens.assign(static_cast<std::size_t>(rows.n), 1);
    step.sequences.push_back(std::move(sequence));
  }
  return step;
}

std::vector<std::int64_t> sizes_of(const std::vector<MicroBatch>& batches) {
  std::vector<std::int64_t> sizes;
  for (const MicroBatch& batch : batches) {
    std::int64_t n = 0;
    for (const Piece& piece : batch) n += piece.n_rows;
    sizes.push_back(n);
  }
  return sizes;
}

double cost_of(const model::Step& step, const MicroBatch& batch, double growth) {
  double cost = 0;
  for (const Piece& piece : batch) {
    for (std::int64_t i = 0; i < piece.n_rows; ++i) {
      cost +=
          1 + growth * static_cast<double>(step.sequences[piece.sequence].start + piece.offset + i);
    }
  }
  return cost;
}

// Every row of every sequence once, in order, in pieces that are not empty.
void expect_whole(const model::Step& step, const std::vector<MicroBatch>& batches) {
  std::size_t sequence = 0;
  std::int64_t offset = 0;
  for (const MicroBatch& batch : batches) {
    ASSERT_FALSE(batch.empty());
    for (const Piece& piece : batch) {
      ASSERT_EQ(piece.sequence, sequence);
      ASSERT_EQ(piece.offset, offset);
      ASSERT_GT(piece.n_rows, 0);
      offset += piece.n_rows;
      if (offset == static_cast<std::int64_t>(step.sequences[sequence].tokens.size())) {
        ++sequence;
        offset = 0;
      }
    }
  }
  EXPECT_EQ(sequence, step.sequences.size());
}

TEST(MicroBatches, EveryRowOnceWithinTheLimit) {
  const std::vector<std::vector<Rows>> steps = {
      {{0, 1}},         {{0, 2}},           {{0, 255}},          {{0, 256}},
      {{0, 257}},       {{0, 2048}},        {{7, 2049}},         {{100000, 4096}},
      {{0, 1}, {5, 1}}, {{0, 300}, {9, 1}}, {{3, 1}, {0, 1000}}, {{0, 70}, {0, 70}, {4000, 700}},
      {{0, 129}},       {{0, 16384}}};
  for (const auto& rows : steps) {
    const model::Step step = step_of(rows);
    for (const std::int64_t stages : {1, 2, 3, 7}) {
      for (const std::int64_t limit : {1, 2, 32, 64, 256, 512}) {
        for (const double per_key : {0.0, 3e-4, 0.7, 1e3, 1e300}) {
          const auto batches =
              cut_step(step, {.max_rows = limit, .n_stages = stages, .cost = {50, 0.1, per_key}});
          expect_whole(step, batches);
          for (const std::int64_t n : sizes_of(batches)) EXPECT_LE(n, limit);
        }
      }
    }
  }
}

TEST(MicroBatches, DeeperOnesHaveFewerRows) {
  const double per_key = 3.4e-4;
  const model::Step step = step_of({{0, 2048}});
  const auto batches =
      cut_step(step, {.max_rows = 384, .n_stages = 2, .cost = {.per_key = per_key}});
  const std::vector<std::int64_t> sizes = sizes_of(batches);
  EXPECT_TRUE(std::is_sorted(sizes.rbegin(), sizes.rend()));
  EXPECT_GT(sizes.front(), sizes.back() * 3 / 2);
  std::vector<double> costs;
  for (const MicroBatch& batch : batches) costs.push_back(cost_of(step, batch, per_key));
  const double mean =
      std::accumulate(costs.begin(), costs.end(), 0.0) / static_cast<double>(costs.size());
  for (const double cost : costs) EXPECT_NEAR(cost, mean, 2.0);  // a row or so
}

// Far into a prompt equal times would need very many parts, and each part costs.
TEST(MicroBatches, NotMorePartsThanTheyGain) {
  const model::Step step = step_of({{0, 16384}});
  const CutOptions options{
      .max_rows = 256, .n_stages = 2, .cost = {.fixed = 50, .per_position = 0.04, .per_key = 2e-4}};
  EXPECT_LE(cut_step(step, options).size(), 70U);
}

TEST(MicroBatches, DepthCountsFromTheSequencesStart) {
  const model::Step step = step_of({{0, 400}, {10000, 400}});
  const auto sizes =
      sizes_of(cut_step(step, {.max_rows = 256, .n_stages = 2, .cost = {.per_key = 1e-4}}));
  EXPECT_GT(sizes.front(), 180);
  EXPECT_LT(sizes.back(), 150);
}

TEST(MicroBatches, EvenWithoutGrowthAndOnOneStage) {
  const model::Step step = step_of({{0, 1000}});
  const std::vector<std::int64_t> even = {250, 250, 250, 250};
  EXPECT_EQ(sizes_of(cut_step(step, {.max_rows = 256, .n_stages = 2})), even);
  EXPECT_EQ(sizes_of(cut_step(step, {.max_rows = 256, .n_stages = 1, .cost = {9, 1, 1e-3}})), even);
}

TEST(MicroBatches, ShortStepsStillKeepAllStagesAtWork) {
  const model::Step step = step_of({{0, 600}});
  EXPECT_EQ(sizes_of(cut_step(step, {.max_rows = 512, .n_stages = 2})).size(), 4U);
  EXPECT_EQ(sizes_of(cut_step(step_of({{0, 100}}), {.max_rows = 512, .n_stages = 2})).size(), 1U);
}

TEST(MicroBatches, DecodeRowsFormAGroupForEachStage) {
  const model::Step step = step_of({{4, 1}, {5, 1}, {6, 1}, {7, 1}, {8, 1}});
  const std::vector<std::int64_t> two = {2, 3};
  const std::vector<std::int64_t> limited = {1, 1, 1, 1, 1};
  EXPECT_EQ(sizes_of(cut_step(step, {.max_rows = 64, .n_stages = 2, .cost = {9, 1, 1}})), two);
  EXPECT_EQ(sizes_of(cut_step(step, {.max_rows = 1, .n_stages = 2})), limited);
  EXPECT_EQ(cut_step(step, {.max_rows = 64, .n_stages = 9}).size(), 5U);
}

}  // namespace
}  // namespace moesaic::cluster
