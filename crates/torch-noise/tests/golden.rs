//! Parity of the CPU generator with PyTorch; the values are written by `golden/make.py`.

use safetensors::SafeTensors;
use swiftbrush_torch_noise::CpuGenerator;

/// Compares consecutive draws of several seeds bit by bit.
fn check(name: &str, draw: fn(&mut CpuGenerator, usize) -> Vec<f32>) {
    let file = SafeTensors::deserialize(include_bytes!("golden/torch.safetensors")).unwrap();
    for seed in [0, 42, (1 << 32) + 5, u64::MAX] {
        let mut generator = CpuGenerator::new(seed);
        for i in 0..6 {
            let tensor = file.tensor(&format!("{name}.{seed}.{i}")).unwrap();
            let expected = tensor.data().as_chunks().0;
            let found = draw(&mut generator, expected.len());
            for (place, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                let expected = f32::from_le_bytes(*expected);
                assert_eq!(
                    found.to_bits(),
                    expected.to_bits(),
                    "{name}, seed {seed}, draw {i}, value {place}: {found:?}, not {expected:?}"
                );
            }
        }
    }
}

#[test]
fn uniform_values_are_those_of_torch() {
    check("rand", CpuGenerator::rand);
}

#[test]
fn normal_values_are_those_of_torch() {
    check("randn", CpuGenerator::randn);
}
