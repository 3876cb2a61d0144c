// The one text of the k-means kernels, compiled once per instruction set. The
// including file first defines, in its anonymous namespace, `Lanes` (kLanes floats)
// and these operations:
//
//     load, store, splat, subtract, smaller, add_square(difference, sum),
//     add_product(a, b, sum), lowest (the least lane), mask_below, mask_equal
//     (bit l for lane l) and, for single floats, add_square and root.
//
// No include guard of the usual kind is needed: a file includes this once.
#pragma once

namespace cqkv::kmeans {
namespace {

constexpr float kInfinity = __builtin_inff();

// Distances carry a relative rounding error of at most (dim + 2) * 2^-24. Bounds give
// way by more than twice that, so that pruning never decides what rounding would.
constexpr float kSlack = 0x1p-18F;

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
      distance = smaller(distance, load(s.nearest + b * kLanes));
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

// The nearest centroid found so far for one point.
struct Best {
  float squared;
  float distance;
  int index;
};

template <int kDim>
float squared_distance(const float* x, const float* y) noexcept {
  float sum = 0;
  for (int j = 0; j < kDim; j++) {
    sum = add_square(x[j] - y[j], sum);
  }
  return sum;
}

// The least of `n` floats; n is a multiple of kLanes.
inline float least_of(const float* values, int n) noexcept {
  Lanes least = load(values);
  for (int i = kLanes; i < n; i += kLanes) {
    least = smaller(least, load(values + i));
  }
  return lowest(least);
}

inline int find(const float* values, float value) noexcept {
  int first = 0;
  unsigned mask = mask_equal(load(values), value);
  while (mask == 0) {
    first += kLanes;
    mask = mask_equal(load(values + first), value);
  }
  return first + __builtin_ctz(mask);
}

// Measures all centroids of group `g`; updates the best and the bounds `lows`.
template <int kDim>
void visit_group(const AssignArgs& s, const float* x, int g, float* lows, Best& best) noexcept {
  alignas(64) float squared[kMaxGroupSize];
  const int size = s.group_size;
  const float* table = s.tables + static_cast<std::size_t>(g) * size * kDim;
  Lanes least = splat(kInfinity);
  for (int first = 0; first < size; first += kLanes) {
    Lanes sum = splat(0);
    for (int j = 0; j < kDim; j++) {
      sum = add_square(subtract(load(table + first * kDim + j * kLanes), splat(x[j])), sum);
    }
    store(squared + first, sum);
    least = smaller(least, sum);
  }
  const float nearest = lowest(least);
  const int old_group = best.index / size;
  if (nearest < best.squared) {
    if (old_group != g && best.distance < lows[old_group]) {
      lows[old_group] = best.distance;  // The old best is now one of the others.
    }
    const int lane = find(squared, nearest);
    best = {nearest, root(nearest), g * size + lane};
    squared[lane] = kInfinity;
    lows[g] = root(least_of(squared, size));
  } else if (old_group == g) {
    squared[best.index % size] = kInfinity;
    lows[g] = root(least_of(squared, size));
  } else {
    lows[g] = root(nearest);
  }
}

// Stores a lower bound so that it is not above the truth when read back later.
inline Lanes stored_bounds(Lanes lows, Lanes travel) noexcept {
  const Lanes keep = splat(1 - kSlack);  // A factor, so that infinity stays infinity.
  return add_product(lows, keep, add_product(travel, keep, splat(0)));
}

template <int kDim>
bool search_point(const AssignArgs& s, std::size_t i) noexcept {
  alignas(64) float lows[kMaxRowGroups];
  const float* x = s.points + i * kDim;
  float* bounds = s.group_lower + i * s.row_groups;
  const int own = s.assignment[i];
  Best best{0, 0, own};
  best.squared = squared_distance<kDim>(x, s.centroids + static_cast<std::size_t>(own) * kDim);
  best.distance = root(best.squared);
  bool visited = false;
  store(lows, subtract(load(bounds), load(s.group_travel)));
  for (int t = kLanes; t < s.row_groups; t += kLanes) {
    store(lows + t, subtract(load(bounds + t), load(s.group_travel + t)));
  }
  for (int t = 0; t < s.row_groups; t += kLanes) {
    unsigned mask = mask_below(load(lows + t), best.distance);
    visited = visited || mask != 0;
    for (; mask != 0; mask &= mask - 1) {
      const int g = t + __builtin_ctz(mask);
      if (lows[g] < best.distance) {
        visit_group<kDim>(s, x, g, lows, best);
      }
    }
  }
  if (visited) {
    for (int t = 0; t < s.row_groups; t += kLanes) {
      store(bounds + t, stored_bounds(load(lows + t), load(s.group_travel + t)));
    }
  }
  const float low = least_of(lows, s.row_groups);
  const float travel = s.centroid_travel[best.index];
  s.assignment[i] = static_cast<std::uint16_t>(best.index);
  s.upper[i] = (best.distance - travel) + kSlack * (best.distance + travel);
  s.lower[i] = (low + s.travel) * (1 - kSlack);
  return best.index != own;
}

template <int kDim>
std::size_t assign_dim(const AssignArgs& s) noexcept {
  std::size_t changed = 0;
  for (std::size_t i = 0; i < s.n_points; i++) {
    const float upper = s.upper[i] + s.centroid_travel[s.assignment[i]];
    if (upper >= s.lower[i] - s.travel) {
      changed += search_point<kDim>(s, i) ? 1 : 0;
    }
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
    default:
      seed_dim<16>(args);
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
    default:
      return assign_dim<16>(args);
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
    default:
      sum_dim<16>(args);
      break;
  }
}

}  // namespace
}  // namespace cqkv::kmeans
