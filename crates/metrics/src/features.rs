use crate::Error;

/// Features of a set of images, one row per image.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    width: usize,
    values: Vec<f32>,
}

impl Features {
    /// Creates features from consecutive rows of `width` values.
    ///
    /// # Errors
    ///
    /// If a value is NaN or infinite.
    ///
    /// # Panics
    ///
    /// If `width` is zero or does not divide the number of values.
    #[track_caller]
    pub fn new(width: usize, values: Vec<f32>) -> Result<Self, Error> {
        assert!(width > 0, "expected a width of at least 1");
        assert!(
            values.len().is_multiple_of(width),
            "expected rows of {width} values, found {} values",
            values.len()
        );
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(Self { width, values }),
            Some(at) => Err(Error::NotFinite { row: at / width }),
        }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The number of values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All values in row-major order.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// One row.
    ///
    /// # Panics
    ///
    /// If `index` is out of range.
    #[track_caller]
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..(index + 1) * self.width]
    }

    /// All rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks(self.width)
    }

    /// Returns the given rows, in the given order.
    ///
    /// # Panics
    ///
    /// If a row is out of range.
    #[track_caller]
    pub fn select(&self, rows: &[usize]) -> Self {
        let values = rows.iter().flat_map(|&row| self.row(row)).copied();
        Self {
            width: self.width,
            values: values.collect(),
        }
    }

    /// Appends the rows of another set.
    ///
    /// # Errors
    ///
    /// If the widths differ.
    pub fn append(&mut self, other: &Self) -> Result<(), Error> {
        self.same_width(other)?;
        self.values.extend_from_slice(&other.values);
        Ok(())
    }

    pub(crate) fn same_width(&self, other: &Self) -> Result<(), Error> {
        match self.width == other.width {
            true => Ok(()),
            false => Err(Error::Width {
                expected: self.width,
                found: other.width,
            }),
        }
    }
}
