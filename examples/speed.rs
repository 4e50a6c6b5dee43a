//! speed probe
use burn::tensor::{Device, Tensor, Distribution};
use std::time::Instant;
use swiftbrush_unet::*;
use swiftbrush_trainer::*;
fn main() {
    let (c0, c1, batch, layers): (usize, usize, usize, usize) = { let a: Vec<usize> = std::env::args().skip(1).map(|x| x.parse().unwrap()).collect(); (a[0], a[1], a[2], a[3]) };
    let device = Device::flex();
    let ad = device.clone().autodiff();
    let config = UNetConfig { sample_size: 8, block_out_channels: vec![c0, c1], layers_per_block: layers, attention_head_dim: OneOrMany::Many(vec![c0/32, c1/32]),
        cross_attention_dim: 64, norm_num_groups: 16, ..UNetConfig::tiny() };
    let mut unet = config.init(&ad);
    println!("{} params", swiftbrush_checkpoint::n_parameters(&unet));
    let normal = Distribution::Normal(0.0, 1.0);
    let mut opt = AdamW::new(AdamWConfig::default());
    let mut ema = Ema::new(&unet, 0.999);
    for i in 0..6 {
        let x = Tensor::<4>::random([batch, 4, 8, 8], normal, &ad);
        let t = Tensor::<1>::random([batch], Distribution::Uniform(0.0, 999.0), &ad);
        let c = Tensor::<3>::random([batch, 24, 64], normal, &ad);
        let s = Instant::now();
        let y = unet.clone().forward(x.clone(), t.clone(), c.clone());
        let _ = y.clone().into_data();
        let f = s.elapsed();
        let loss = (y - x.clone()).powi_scalar(2).mean();
        let mut g = loss.backward();
        let grads = NamedGradients::take(&unet, &mut g);
        let (grads, norm) = grads.clip(1.0);
        let b = s.elapsed();
        unet = opt.step(unet, grads, 1e-3);
        ema.update(&unet);
        let u = s.elapsed();
        let inner = burn::module::Module::valid(&unet);
        let s2 = Instant::now();
        let y = inner.forward(x.inner(), t.inner(), c.inner());
        let _ = y.into_data();
        println!("{i}: fwd {:.0} ms, bwd {:.0} ms, opt+ema {:.0} ms; plain fwd {:.0} ms; loss {:.4} norm {norm:.3}", f.as_secs_f64()*1e3, (b-f).as_secs_f64()*1e3, (u-b).as_secs_f64()*1e3, s2.elapsed().as_secs_f64()*1e3, loss.into_data().iter::<f32>().next().unwrap());
    }
}
