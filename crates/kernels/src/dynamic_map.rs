//! Codes of 8 bits for values within ±1.

use std::sync::OnceLock;

/// The dynamic map of 8-bit optimisers (Dettmers et al., arXiv 2110.02861, §2.1, in the values of bitsandbytes'
/// `create_dynamic_map`): 256 values within ±1, evenly spaced within each power of ten, twice as many in the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynamicMap {
    /// From −0.993 to 1, for first moments.
    Signed,
    /// From 0 to 1, for second moments.
    Unsigned,
}

/// Powers of ten below 1.
const DECADES: i32 = 7;

/// Bits of a value above those that [`Table::code`] looks up, which are sign, exponent and seven bits of the fraction.
const BELOW_BUCKET: u32 = 16;

/// Bucket of 2⁻²⁵, below every boundary between two codes, and of 1.
const BUCKETS: [u32; 2] = [0x3300, 0x3f80];

/// A map's values in ascending order, and the boundaries between neighbours.
pub(crate) struct Table {
    pub(crate) values: [f32; 256],
    pub(crate) bounds: [f32; 255],
    /// The code of the least value of each bucket, for positive and negative values.
    first: [Vec<u8>; 2],
}

impl DynamicMap {
    /// The value of each code.
    pub fn values(self) -> [f32; 256] {
        self.table().values
    }

    pub(crate) fn table(self) -> &'static Table {
        static TABLES: [OnceLock<Table>; 2] = [OnceLock::new(), OnceLock::new()];
        TABLES[self as usize].get_or_init(|| Table::new(self))
    }

    fn compute(self) -> [f32; 256] {
        let mut values = vec![0.0, 1.0];
        for decade in 0..DECADES {
            let count = 1 << (decade + i32::from(self == Self::Unsigned));
            let scale = 10f64.powi(decade + 1 - DECADES) as f32;
            for mean in means(count) {
                values.push(scale * mean);
                if self == Self::Signed {
                    values.push(-(scale * mean));
                }
            }
        }
        values.sort_by(f32::total_cmp);
        values.try_into().expect("a map has 256 values")
    }
}

/// Centres of `count` equal parts of 0.1 to 1, in the arithmetic of `torch.linspace`.
fn means(count: usize) -> impl Iterator<Item = f32> {
    let step = (1.0f32 - 0.1) / count as f32;
    let boundary = move |index: usize| {
        if index < count.div_ceil(2) {
            0.1 + step * index as f32
        } else {
            1.0 - step * (count - index) as f32
        }
    };
    (0..count).map(move |index| (boundary(index) + boundary(index + 1)) / 2.0)
}

impl Table {
    fn new(map: DynamicMap) -> Self {
        let values = map.compute();
        let bounds = std::array::from_fn(|code| (values[code] + values[code + 1]) / 2.0);
        let code = |value: f32| bounds.partition_point(|&bound| bound < value) as u8;
        let [least, greatest] = BUCKETS;
        let positive = (least..=greatest).map(|bucket| match bucket == least {
            true => code(0.0),
            false => code(f32::from_bits(bucket << BELOW_BUCKET)),
        });
        // The greatest magnitude of a bucket.
        let negative = (least..=greatest)
            .map(|bucket| code(-f32::from_bits(((bucket + 1) << BELOW_BUCKET) - 1)));
        Self {
            first: [positive.collect(), negative.collect()],
            values,
            bounds,
        }
    }

    /// The code of the nearest value, the lower of two that are equally near.
    #[inline]
    pub(crate) fn code(&self, value: f32) -> u8 {
        let [least, greatest] = BUCKETS;
        let bits = value.to_bits();
        let bucket = ((bits & 0x7fff_ffff) >> BELOW_BUCKET).clamp(least, greatest);
        let mut code = self.first[(bits >> 31) as usize][(bucket - least) as usize];
        while code < 255 && self.bounds[code as usize] < value {
            code += 1;
        }
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_nearest_values() {
        for map in [DynamicMap::Signed, DynamicMap::Unsigned] {
            let table = map.table();
            for (code, &value) in table.values.iter().enumerate() {
                assert_eq!(table.code(value), code as u8);
            }
            for step in -20_000..=20_000i32 {
                // Cubes are denser around zero.
                let value = (step as f32 / 20_000.0).powi(3);
                let expected = table.bounds.partition_point(|&bound| bound < value);
                assert_eq!(table.code(value), expected as u8, "{map:?} {value}");
            }
        }
    }
}
