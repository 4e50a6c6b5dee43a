use crate::Error;

/// A row of numbers for each picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    width: usize,
    values: Vec<f32>,
}

impl Features {
    /// Rows of `width` numbers, one after the other.
    ///
    /// # Errors
    ///
    /// If a number is not finite.
    ///
    /// # Panics
    ///
    /// If `width` is zero or the values do not make whole rows.
    pub fn new(width: usize, values: Vec<f32>) -> Result<Self, Error> {
        assert!(width > 0, "a row has a number at least");
        assert!(
            values.len().is_multiple_of(width),
            "{} numbers are no rows of {width}",
            values.len()
        );
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(Self { width, values }),
            Some(at) => Err(Error::NotFinite { row: at / width }),
        }
    }

    /// Pictures.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Numbers of each picture.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All numbers, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The numbers of a picture.
    ///
    /// # Panics
    ///
    /// If there is no such picture.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..(index + 1) * self.width]
    }

    /// The numbers of each picture.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks(self.width)
    }

    /// These rows, in this order.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn select(&self, rows: &[usize]) -> Self {
        let values = rows.iter().flat_map(|&row| self.row(row)).copied();
        Self {
            width: self.width,
            values: values.collect(),
        }
    }

    /// The rows of this and then those of another.
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
