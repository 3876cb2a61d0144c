// The k-means kernels: one text, compiled once for each instruction set with the lanes of that
// (kmeans_lanes-inl.h). The algorithm around them is in kmeans.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codebook/kmeans_kernels.h"
#include "codebook/kmeans_lanes-inl.h"

// NOLINTBEGIN(misc-definitions-in-headers): one copy for each level is what is wanted
namespace cqkv::kmeans {
namespace {

constexpr float kInfinity = __builtin_inff();

// Squared distances carry a relative rounding error of at most (dim + 2) * 2^-24 and
// distances half of that, 2^-19 with 64 channels. Bounds give way by eight times as much,
// so that pruning never decides what rounding would.
constexpr float kSlack = 0x1p-16F;

template <int kDim>
void seed_dim(const SeedArgs& s) noexcept {
  for (std::size_t first = 0; first < s.n_blocks; first += kChunkBlocks) {
    const std::size_t end = first + kChunkBlocks < s.n_blocks ? first + kChunkBlocks : s.n_blocks;
    Lanes sum = splat(0);
    for (std::size_t b = first; b < end; b++) {
      const float* block = s.blocks + b * kDim * kLanes;
      Lanes distance = splat(0);
      for (int j = 0; j < kDim; j++) {
        distance = add_square(subtract(load(block + j * kLanes), splat(s.centroid[j])), distance);
      }
      const Lanes before = load(s.nearest + b * kLanes);
      const Lanes owner = load(s.owner + b * kLanes);
      store(s.owner + b * kLanes, select_below(distance, before, splat(s.index), owner));
      distance = smaller(distance, before);
      store(s.nearest + b * kLanes, distance);
      sum = add_product(distance, load(s.weights + b * kLanes), sum);
    }
    float lanes[kLanes];
    store(lanes, sum);
    double total = 0;
    for (const float lane : lanes) {
      total += static_cast<double>(lane);
    }
    s.chunk_sums[first / kChunkBlocks] = total;
  }
}

// The order of the sum is not that of the lanes: callers allow for rounding.
template <int kDim>
inline float squared_distance(const float* x, const float* y) noexcept {
  using Four = float __attribute__((vector_size(16)));
  if constexpr (kDim < 4) {
    float sum = 0;
    for (int j = 0; j < kDim; j++) {
      sum += (x[j] - y[j]) * (x[j] - y[j]);
    }
    return sum;
  } else {
    Four sum = {0, 0, 0, 0};
    for (int j = 0; j < kDim; j += 4) {
      Four a;
      Four b;
      __builtin_memcpy(&a, x + j, sizeof(a));
      __builtin_memcpy(&b, y + j, sizeof(b));
      sum += (a - b) * (a - b);
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}

// The channels of one point, each in all lanes: kept in registers over many groups.
template <int kDim>
struct Splatted {
  explicit Splatted(const float* x) noexcept {
    for (int j = 0; j < kDim; j++) {
      channel[j] = splat(x[j]);
    }
  }

  Lanes channel[kDim];
};

// Squared distances to the kLanes centroids of one table block.
template <int kDim>
inline Lanes block_distances(const float* block, const Splatted<kDim>& x) noexcept {
  constexpr int kChains = kDim < 4 ? 1 : 4;
  Lanes sum[kChains];
  for (int j = 0; j < kChains; j++) {
    const Lanes difference = subtract(load(block + j * kLanes), x.channel[j]);
    sum[j] = add_square(difference, splat(0));
  }
  for (int j = kChains; j < kDim; j++) {
    const Lanes difference = subtract(load(block + j * kLanes), x.channel[j]);
    sum[j % kChains] = add_square(difference, sum[j % kChains]);
  }
  if constexpr (kChains == 1) {
    return sum[0];
  } else {
    return add(add(sum[0], sum[1]), add(sum[2], sum[3]));
  }
}

// The least squared distance to group `g`, centroid `excluded` left out.
template <int kDim>
inline float group_distance(const AssignArgs& s, const Splatted<kDim>& x, int g,
                            int excluded) noexcept {
  const float* table = s.tables + static_cast<std::size_t>(g) * s.group_size * kDim;
  const int lane = excluded - g * s.group_size;
  Lanes least = without(block_distances<kDim>(table, x), lane);
  for (int first = kLanes; first < s.group_size; first += kLanes) {
    const Lanes block = block_distances<kDim>(table + first * kDim, x);
    least = smaller(least, without(block, lane - first));
  }
  return lowest(least);
}

// The first centroid of group `g` whose squared distance is `squared`.
template <int kDim>
int find_centroid(const AssignArgs& s, const Splatted<kDim>& x, int g, float squared) noexcept {
  const float* table = s.tables + static_cast<std::size_t>(g) * s.group_size * kDim;
  for (int first = 0; first < s.group_size; first += kLanes) {
    const unsigned mask = mask_equal(block_distances<kDim>(table + first * kDim, x), squared);
    if (mask != 0) {
      return g * s.group_size + first + __builtin_ctz(mask);
    }
  }
  return g * s.group_size;  // Not reached: the sums are the same as when `squared` was found.
}

// Points are taken in tiles and a tile in passes, so that the unforeseeable branch (must
// this point be measured?) becomes the length of a list.
constexpr std::size_t kTile = 128;

// The points of a tile still in question.
struct Tile {
  std::size_t n;
  std::size_t point[kTile];
  float squared[kTile];         // to the own centroid
  float low[kTile];             // least bound of the groups not in `groups`
  std::uint64_t groups[kTile];  // whose bounds do not rule them out
};

inline float stored_upper(float distance, float travel) noexcept {
  return (distance - travel) + kSlack * (distance + travel);
}

inline float stored_lower(float distance, float travel) noexcept {
  return (distance + travel) * (1 - kSlack);  // A factor: infinity stays infinity.
}

// Lists the points of [first, end) that the bound over all centroids does not settle.
inline void list_points(const AssignArgs& s, std::size_t first, std::size_t end,
                        Tile& tile) noexcept {
  std::size_t n = 0;
  for (std::size_t i = first; i < end; i++) {
    const float upper = s.upper[i] + s.centroid_travel[s.assignment[i]];
    tile.point[n] = i;
    n += upper >= s.lower[i] - s.travel ? 1 : 0;
  }
  tile.n = n;
}

// Measures the own centroids; keeps the points that the bounds of groups do not settle.
template <int kDim>
void measure_own(const AssignArgs& s, Tile& tile) noexcept {
  std::size_t n = 0;
  for (std::size_t at = 0; at < tile.n; at++) {
    const std::size_t i = tile.point[at];
    const std::size_t own = s.assignment[i];
    const float squared = squared_distance<kDim>(s.points + i * kDim, s.centroids + own * kDim);
    const float distance = root(squared);
    float* bounds = s.group_lower + i * s.row_groups;
    std::uint64_t groups = 0;
    Lanes low = splat(kInfinity);
    for (int t = 0; t < s.row_groups; t += kLanes) {
      Lanes lows = subtract(load(bounds + t), load(s.group_travel + t));
      if (s.between != nullptr) {
        const float* between = s.between + own * s.row_groups;
        lows = subtract(load(between + t), splat(distance));
        store(bounds + t, lows);
      }
      groups |= static_cast<std::uint64_t>(mask_below(lows, distance)) << t;
      low = smaller(low, select_below(lows, splat(distance), splat(kInfinity), lows));
    }
    tile.point[n] = i;
    tile.squared[n] = squared;
    tile.low[n] = lowest(low);
    tile.groups[n] = groups;
    s.upper[i] = stored_upper(distance, s.centroid_travel[own]);
    s.lower[i] = stored_lower(tile.low[n], s.travel);
    n += groups != 0 ? 1 : 0;
  }
  tile.n = n;
}

// Point `i` leaves its centroid for the one in group `g` at `squared`; returns the least
// squared distance of the others in that group.
template <int kDim>
float move_point(const AssignArgs& s, std::size_t i, int g, float squared,
                 float own_squared) noexcept {
  const Splatted<kDim> x(s.points + i * kDim);
  float* bounds = s.group_lower + i * s.row_groups;
  const int own_group = s.assignment[i] / s.group_size;
  const int index = find_centroid<kDim>(s, x, g, squared);
  const float other = group_distance<kDim>(s, x, g, index);
  bounds[g] = stored_lower(root(other), s.group_travel[g]);
  const float own = stored_lower(root(own_squared), s.group_travel[own_group]);
  bounds[own_group] = own < bounds[own_group] ? own : bounds[own_group];
  s.assignment[i] = static_cast<std::uint16_t>(index);
  s.upper[i] = stored_upper(root(squared), s.centroid_travel[index]);
  return other;
}

// Measures the groups in question; returns how many points changed centroid.
template <int kDim>
std::size_t measure_groups(const AssignArgs& s, const Tile& tile) noexcept {
  std::size_t changed = 0;
  for (std::size_t at = 0; at < tile.n; at++) {
    const std::size_t i = tile.point[at];
    const Splatted<kDim> x(s.points + i * kDim);
    float* bounds = s.group_lower + i * s.row_groups;
    const int own = s.assignment[i];
    float best = tile.squared[at];
    float second = kInfinity;  // of those measured, the own among them once it is not best
    int best_group = -1;
    for (std::uint64_t groups = tile.groups[at]; groups != 0; groups &= groups - 1) {
      const int g = __builtin_ctzll(groups);
      const float squared = group_distance<kDim>(s, x, g, own);
      bounds[g] = stored_lower(root(squared), s.group_travel[g]);
      const float larger = best < squared ? squared : best;
      second = larger < second ? larger : second;
      best_group = squared < best ? g : best_group;
      best = squared < best ? squared : best;
    }
    if (best_group >= 0) {
      const float other = move_point<kDim>(s, i, best_group, best, tile.squared[at]);
      second = other < second ? other : second;
      changed += s.assignment[i] != own ? 1 : 0;
    }
    const float low = root(second);
    s.lower[i] = stored_lower(low < tile.low[at] ? low : tile.low[at], s.travel);
  }
  return changed;
}

template <int kDim>
std::size_t assign_dim(const AssignArgs& s) noexcept {
  Tile tile;
  std::size_t changed = 0;
  for (std::size_t first = 0; first < s.n_points; first += kTile) {
    const std::size_t end = first + kTile < s.n_points ? first + kTile : s.n_points;
    list_points(s, first, end, tile);
    measure_own<kDim>(s, tile);
    changed += measure_groups<kDim>(s, tile);
  }
  return changed;
}

template <int kDim>
void sum_dim(const SumArgs& s) noexcept {
  for (std::size_t i = 0; i < s.n_points; i++) {
    const std::size_t a = s.assignment[i];
    const double weight = static_cast<double>(s.weights[i]);
    for (int j = 0; j < kDim; j++) {
      s.sums[a * kDim + j] += weight * static_cast<double>(s.points[i * kDim + j]);
    }
    s.mass[a] += weight;
    s.counts[a]++;
  }
}

void seed(int dim, const SeedArgs& args) noexcept {
  switch (dim) {
    case 1:
      seed_dim<1>(args);
      break;
    case 2:
      seed_dim<2>(args);
      break;
    case 4:
      seed_dim<4>(args);
      break;
    case 8:
      seed_dim<8>(args);
      break;
    case 16:
      seed_dim<16>(args);
      break;
    case 32:
      seed_dim<32>(args);
      break;
    default:
      seed_dim<64>(args);
      break;
  }
}

std::size_t assign(int dim, const AssignArgs& args) noexcept {
  switch (dim) {
    case 1:
      return assign_dim<1>(args);
    case 2:
      return assign_dim<2>(args);
    case 4:
      return assign_dim<4>(args);
    case 8:
      return assign_dim<8>(args);
    case 16:
      return assign_dim<16>(args);
    case 32:
      return assign_dim<32>(args);
    default:
      return assign_dim<64>(args);
  }
}

void sum(int dim, const SumArgs& args) noexcept {
  switch (dim) {
    case 1:
      sum_dim<1>(args);
      break;
    case 2:
      sum_dim<2>(args);
      break;
    case 4:
      sum_dim<4>(args);
      break;
    case 8:
      sum_dim<8>(args);
      break;
    case 16:
      sum_dim<16>(args);
      break;
    case 32:
      sum_dim<32>(args);
      break;
    default:
      sum_dim<64>(args);
      break;
  }
}

}  // namespace
}  // namespace cqkv::kmeans

// NOLINTEND(misc-definitions-in-headers)
