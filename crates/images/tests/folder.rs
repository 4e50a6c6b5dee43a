//! Listing of folders.

use std::path::PathBuf;

use swiftbrush_images::Folder;

#[test]
fn pictures_are_listed_in_natural_order_and_the_rest_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let error = Folder::list(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains(&folder.path().display().to_string()) && error.contains("no images"),
        "{error}"
    );
    std::fs::create_dir(folder.path().join("b")).unwrap();
    std::fs::create_dir(folder.path().join(".hidden")).unwrap();
    let pictures = [
        "0.png",
        "1.JPG",
        "2.bmp",
        "3.webp",
        "9.tif",
        "10.tiff",
        "11.ppm",
        "100.pgm",
        "b/2.npy",
        "b/10.jpeg",
        "c.PNG",
    ];
    let others = ["12.gif", "._0.png", ".hidden", "prompts.txt"];
    for name in pictures
        .iter()
        .chain(&others)
        .filter(|name| **name != ".hidden")
    {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let found = Folder::list(folder.path()).unwrap();
    let paths = |names: &[&str]| -> Vec<PathBuf> {
        names.iter().map(|name| folder.path().join(name)).collect()
    };
    assert_eq!(found.pictures, paths(&pictures));
    assert_eq!(found.skipped, paths(&others));
    assert_eq!(found.tie(), None);

    for (first, second) in [("01.png", "1.JPG"), ("2.bmp", "2.png")] {
        let extra = [first, second]
            .into_iter()
            .find(|name| !pictures.contains(name));
        let extra = folder.path().join(extra.unwrap());
        std::fs::write(&extra, "").unwrap();
        let found = Folder::list(folder.path()).unwrap();
        let expected = [first, second].map(|name| folder.path().join(name));
        assert_eq!(found.tie().unwrap(), [&expected[0], &expected[1]]);
        std::fs::remove_file(&extra).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn links_to_folders_are_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.png"), "").unwrap();
    let link = folder.path().join("loop.png");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let found = Folder::list(folder.path()).unwrap();
    assert_eq!((found.pictures.len(), found.skipped), (1, vec![link]));
}
