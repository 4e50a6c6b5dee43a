//! The shapes world.
mod data;
mod first_stages;
mod scorer;
mod training;
mod world;
use std::path::PathBuf;
fn main() -> anyhow::Result<()> {
    let device = burn::tensor::Device::flex();
    let folder = PathBuf::from("/work/run/mini");
    match std::env::args().nth(1).as_deref() {
        Some("ae") => { first_stages::train_autoencoder(&folder.join("autoencoder"), 0, std::env::args().nth(2).unwrap().parse()?, &device)?; }
        Some("clip") => {
            let n = data::write_tokenizer(&folder.join("tokenizer"))?;
            println!("{n} tokens");
            let tok = swiftbrush_clip::Tokenizer::from_folder(&swiftbrush_checkpoint::Folder::open(&folder)?, "tokenizer")?;
            println!("{:?}", tok.encode("an orange ring to the left of a black heart on a yellow background").ids);
            first_stages::train_clip(&folder.join("clip"), &tok, n, 0, std::env::args().nth(2).unwrap().parse()?, &device)?; }
        _ => {}
    }
    Ok(())
}
