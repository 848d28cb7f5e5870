//! The largest k of a list, and *which* of equal ones.
//!
//! Ties are not rare here: in the first layer every landmark has the same key (the landmark's embedding), and
//! all old blocks are scored at one position, so their scores are equal to the last bit. Which of them is
//! chosen changes the loss in the fourth digit. The released program leaves it to `torch.topk`, which on a CPU
//! leaves it to the C++ library: `std::nth_element`, or `std::partial_sort` when k is small against the
//! list. Both are deterministic, and the checkpoint's published numbers depend on them; so this module
//! performs the same comparisons and exchanges as libstdc++ does (introselect with the median of three, and a
//! heap).

/// Scores looked at together.
const AT_ONCE: usize = 64;

/// Indices of the `k` largest of `scores`, in no particular order, in front of `order`.
pub(super) fn largest<T: PartialOrd + Copy>(scores: &[T], k: usize, order: &mut Vec<u32>) {
    order.clear();
    let k = k.min(scores.len());
    if k == 0 {
        return;
    }
    // NaN goes first, as in NumPy.
    let nan = |i: u32| scores[i as usize].partial_cmp(&scores[i as usize]).is_none();
    let before = |a: u32, b: u32| (nan(a) && !nan(b)) || scores[a as usize] > scores[b as usize];
    // PyTorch's rule for when a heap is the faster way.
    if k * 64 <= scores.len() {
        // Behind the heap every index is looked at once, in its own place, so none has to be stored.
        order.extend(0..k as u32);
        make_heap(order, &before);
        for start in (k..scores.len()).step_by(AT_ONCE) {
            let end = (start + AT_ONCE).min(scores.len());
            // Most pieces hold nothing that would enter the heap, which a loop without branches sees at once.
            let root = scores[order[0] as usize];
            if scores[start..end].iter().fold(true, |below, x| below & (*x <= root)) {
                continue;
            }
            for i in start as u32..end as u32 {
                if before(i, order[0]) {
                    sift(order, 0, i, &before);
                }
            }
        }
    } else {
        order.extend(0..scores.len() as u32);
        nth_element(order, k - 1, &before);
    }
}

fn nth_element(v: &mut [u32], nth: usize, before: &impl Fn(u32, u32) -> bool) {
    let (mut first, mut last) = (0, v.len());
    let mut depth = 2 * v.len().ilog2();
    while last - first > 3 {
        if depth == 0 {
            heap_select(&mut v[first..last], nth + 1 - first, before);
            v.swap(first, nth);
            return;
        }
        depth -= 1;
        let cut = partition(v, first, last, before);
        if cut <= nth {
            first = cut;
        } else {
            last = cut;
        }
    }
    insertion_sort(&mut v[first..last], before);
}

/// Partitions `first..last` around the median of three elements, which goes to the front.
fn partition(v: &mut [u32], first: usize, last: usize, before: &impl Fn(u32, u32) -> bool) -> usize {
    let (a, b, c) = (first + 1, first + (last - first) / 2, last - 1);
    let median = if before(v[a], v[b]) {
        if before(v[b], v[c]) {
            b
        } else if before(v[a], v[c]) {
            c
        } else {
            a
        }
    } else if before(v[a], v[c]) {
        a
    } else if before(v[b], v[c]) {
        c
    } else {
        b
    };
    v.swap(first, median);
    let (mut low, mut high) = (first + 1, last);
    loop {
        // The pivot and the other two of the three stop both scans.
        while before(v[low], v[first]) {
            low += 1;
        }
        high -= 1;
        while before(v[first], v[high]) {
            high -= 1;
        }
        if low >= high {
            return low;
        }
        v.swap(low, high);
        low += 1;
    }
}

fn insertion_sort(v: &mut [u32], before: &impl Fn(u32, u32) -> bool) {
    for i in 1..v.len() {
        let value = v[i];
        let mut hole = i;
        while hole > 0 && before(value, v[hole - 1]) {
            v[hole] = v[hole - 1];
            hole -= 1;
        }
        v[hole] = value;
    }
}

/// Leaves the first `middle` elements as a heap of the ones that come first, its root the last of them.
fn heap_select(v: &mut [u32], middle: usize, before: &impl Fn(u32, u32) -> bool) {
    make_heap(&mut v[..middle], before);
    for i in middle..v.len() {
        if before(v[i], v[0]) {
            let value = v[i];
            v[i] = v[0];
            sift(&mut v[..middle], 0, value, before);
        }
    }
}

fn make_heap(heap: &mut [u32], before: &impl Fn(u32, u32) -> bool) {
    if heap.len() >= 2 {
        for parent in (0..=(heap.len() - 2) / 2).rev() {
            let value = heap[parent];
            sift(heap, parent, value, before);
        }
    }
}

/// Moves the hole at `top` down to a leaf, then `value` up from there.
fn sift(heap: &mut [u32], top: usize, value: u32, before: &impl Fn(u32, u32) -> bool) {
    let len = heap.len();
    let (mut hole, mut child) = (top, top);
    while child < (len - 1) / 2 {
        child = 2 * (child + 1);
        if before(heap[child], heap[child - 1]) {
            child -= 1;
        }
        heap[hole] = heap[child];
        hole = child;
    }
    if len.is_multiple_of(2) && child == (len - 2) / 2 {
        child = 2 * (child + 1);
        heap[hole] = heap[child - 1];
        hole = child - 1;
    }
    while hole > top && before(heap[(hole - 1) / 2], value) {
        heap[hole] = heap[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    heap[hole] = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(scores: &[f64], k: usize) -> Vec<u32> {
        let mut order = Vec::new();
        largest(scores, k, &mut order);
        let mut chosen = order[..k].to_vec();
        chosen.sort_unstable();
        chosen
    }

    #[test]
    fn the_largest_are_found() {
        for n in 1..200_usize {
            let scores: Vec<f64> = (0..n).map(|i| ((i * 7919 + 13) % 1009) as f64).collect();
            for k in [1, 2, n / 2, n].into_iter().filter(|&k| k > 0 && k <= n) {
                let mut sorted: Vec<u32> = (0..n as u32).collect();
                sorted.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
                let mut expected = sorted[..k].to_vec();
                expected.sort_unstable();
                assert_eq!(chosen(&scores, k), expected, "{k} of {n}");
            }
        }
    }

    /// What `torch.topk` of PyTorch 2.15 chose on a CPU.
    #[test]
    fn ties_go_where_torch_sends_them() {
        let with = |n: usize, changes: &[(usize, f64)]| {
            let mut scores = vec![1.0; n];
            changes.iter().for_each(|&(i, x)| scores[i] = x);
            scores
        };
        let alternating: Vec<f64> = (0..40).map(|i| f64::from(i % 2)).collect();
        let cases: [(Vec<f64>, usize, &[u32]); 15] = [
            (vec![0.0, 0.0, 0.0, 1.0], 1, &[3]),
            (vec![0.0, 0.0, 0.0, -1.0], 1, &[1]),
            (vec![0.0, 0.0, 0.0, -1.0], 2, &[1, 2]),
            (with(7, &[]), 2, &[4, 5]),
            (with(40, &[]), 2, &[26, 28]),
            (with(40, &[]), 4, &[25, 26, 27, 28]),
            (with(40, &[(38, 0.0), (39, 2.0)]), 2, &[26, 39]),
            (with(80, &[(79, 0.0)]), 4, &[51, 52, 53, 54]),
            (with(200, &[]), 2, &[0, 1]),
            (with(200, &[]), 1, &[0]),
            (with(166, &[(65, 2.0)]), 2, &[0, 65]),
            (alternating, 3, &[19, 21, 23]),
            (vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0], 5, &[0, 6, 7, 8, 10]),
            (with(6, &[]), 6, &[0, 1, 2, 3, 4, 5]),
            (with(12, &[(0, 2.0), (11, 3.0)]), 3, &[0, 8, 11]),
        ];
        for (scores, k, expected) in cases {
            assert_eq!(chosen(&scores, k), expected, "{k} of {scores:?}");
        }
    }
}
