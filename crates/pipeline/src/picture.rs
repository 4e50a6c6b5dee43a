use burn::tensor::{Device, Tensor, TensorData};

use crate::Error;
#[cfg(feature = "png")]
use crate::Record;
#[cfg(feature = "png")]
use crate::limits::check_pixels;

/// An 8-bit RGB image in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
    /// `3 · width · height` values.
    pub bytes: Vec<u8>,
}

impl Picture {
    /// Converts a batch of images, `[batch, 3, height, width]` in −1…1, rounded like in diffusers.
    pub fn of_images(images: Tensor<4>) -> Vec<Self> {
        let dims = images.dims();
        Self::of_values(&images.permute([0, 2, 3, 1]).into_data(), dims)
    }

    /// [`of_images`](Self::of_images) without waiting for the device.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub async fn of_images_async(images: Tensor<4>) -> Result<Vec<Self>, Error> {
        let dims = images.dims();
        let values = images.permute([0, 2, 3, 1]).into_data_async().await;
        let values = values.map_err(|error| Error::Execution(error.to_string()))?;
        Ok(Self::of_values(&values, dims))
    }

    fn of_values(values: &TensorData, [_, channels, height, width]: [usize; 4]) -> Vec<Self> {
        let byte = |x: f32| ((x + 1.0) * 127.5).round_ties_even().clamp(0.0, 255.0) as u8;
        let bytes: Vec<u8> = values.iter::<f32>().map(byte).collect();
        bytes
            .chunks(channels * height * width)
            .map(|bytes| Self {
                width,
                height,
                bytes: bytes.to_vec(),
            })
            .collect()
    }

    /// Converts pictures of the same size to a batch in −1…1.
    ///
    /// # Shapes
    ///
    /// - returns: `[pictures, 3, height, width]`, f32
    ///
    /// # Errors
    ///
    /// If there are none, their sizes differ, or the number of bytes of one does not match its size.
    pub fn to_images(pictures: &[Self], device: &Device) -> Result<Tensor<4>, Error> {
        let Some(Self { width, height, .. }) = pictures.first() else {
            return Err(Error::Request("no pictures".to_owned()));
        };
        let len = 3 * width * height;
        for picture in pictures {
            if (picture.width, picture.height, picture.bytes.len()) != (*width, *height, len) {
                return Err(Error::Request(format!(
                    "expected pictures of {width}x{height} pixels, found one of {}x{} with {} bytes",
                    picture.width,
                    picture.height,
                    picture.bytes.len()
                )));
            }
        }
        let bytes = pictures.iter().flat_map(|picture| &picture.bytes);
        let values: Vec<f32> = bytes.map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
        let images = TensorData::new(values, [pictures.len(), *height, *width, 3]);
        Ok(Tensor::<4>::from_data(images, device).permute([0, 3, 1, 2]))
    }
}

#[cfg(any(feature = "png", feature = "image"))]
impl Picture {
    #[track_caller]
    fn assert_size(&self) {
        let (width, height, found) = (self.width, self.height, self.bytes.len());
        let expected = 3 * width * height;
        assert!(
            found == expected,
            "expected {expected} bytes for {width}x{height} pixels, found {found}"
        );
    }
}

#[cfg(feature = "png")]
impl Picture {
    /// Encodes the picture as a PNG file, optionally with a record in this library's format and in AUTOMATIC1111's.
    ///
    /// # Panics
    ///
    /// If the number of bytes does not match width and height.
    #[track_caller]
    pub fn to_png(&self, record: Option<&Record>) -> Vec<u8> {
        self.assert_size();
        let mut file = Vec::new();
        let (width, height) = (self.width as u32, self.height as u32);
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (key, text) in record.map(Record::texts).into_iter().flatten() {
            // All readers support Latin-1 chunks.
            let is_latin = text.chars().all(|c| u32::from(c) < 256);
            let added = match is_latin {
                true => encoder.add_text_chunk(key.to_owned(), text),
                false => encoder.add_itxt_chunk(key.to_owned(), text),
            };
            added.expect("the header is not written yet");
        }
        let written = encoder
            .write_header()
            .and_then(|mut writer| writer.write_image_data(&self.bytes));
        written.expect("memory takes any number of bytes");
        file
    }

    /// Decodes a PNG file with 8 bits per channel in RGB, as [`to_png`](Self::to_png) writes it.
    ///
    /// # Errors
    ///
    /// If the bytes are not a PNG file, or have other channels.
    pub fn of_png(bytes: &[u8]) -> Result<Self, Error> {
        let bad = |reason: String| Error::Request(format!("cannot read the PNG file: {reason}"));
        let decoder = png::Decoder::new(std::io::Cursor::new(bytes));
        let mut reader = decoder
            .read_info()
            .map_err(|error| bad(error.to_string()))?;
        let found = reader.output_color_type();
        if found != (png::ColorType::Rgb, png::BitDepth::Eight) {
            let text = format!("unsupported channels {found:?}; expected RGB with 8 bits each");
            return Err(bad(text));
        }
        let (width, height) = (reader.info().width as usize, reader.info().height as usize);
        check_pixels([height, width]).map_err(bad)?;
        let mut bytes = vec![0; 3 * width * height];
        let read = reader.next_frame(&mut bytes);
        read.map_err(|error| bad(error.to_string()))?;
        Ok(Self {
            width,
            height,
            bytes,
        })
    }

    /// Writes the picture as a PNG file. Missing folders are created; an existing file is replaced once the new one is
    /// complete.
    ///
    /// # Errors
    ///
    /// If the path does not end with `.png`, or the file cannot be written.
    ///
    /// # Panics
    ///
    /// Same as [`to_png`](Self::to_png).
    #[track_caller]
    pub fn save(
        &self,
        path: impl AsRef<std::path::Path>,
        record: Option<&Record>,
    ) -> Result<(), Error> {
        let path = path.as_ref();
        let end = path.extension().map(|end| end.to_ascii_lowercase());
        if end.is_none_or(|end| end != "png") {
            return Err(Error::Picture {
                path: path.to_owned(),
                reason: "unsupported format; expected a name that ends with .png".to_owned(),
            });
        }
        let bytes = self.to_png(record);
        swiftbrush_checkpoint::write_atomically(path, |file| file.write_all(&bytes))?;
        Ok(())
    }
}

#[cfg(feature = "image")]
impl From<Picture> for image::RgbImage {
    /// # Panics
    ///
    /// If the number of bytes does not match width and height.
    #[track_caller]
    fn from(picture: Picture) -> Self {
        picture.assert_size();
        let (width, height) = (picture.width as u32, picture.height as u32);
        Self::from_raw(width, height, picture.bytes).expect("three bytes for each pixel")
    }
}

#[cfg(feature = "image")]
impl From<image::RgbImage> for Picture {
    fn from(image: image::RgbImage) -> Self {
        Self {
            width: image.width() as usize,
            height: image.height() as usize,
            bytes: image.into_raw(),
        }
    }
}
