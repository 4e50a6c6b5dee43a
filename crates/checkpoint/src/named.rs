use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// A visitor of the floating-point parameters of a module and their names; see [`visit_named`].
pub trait NamedVisitor {
    /// Visits a parameter.
    fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>);
}

/// A mapper that replaces the floating-point parameters of a module by name; see [`map_named`].
pub trait NamedMapper {
    /// Maps a parameter.
    fn float<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Visits every floating-point parameter with its name in checkpoints: fields and indices joined by dots, without the
/// variants of enums, as in `down_blocks.0.resnets.1.conv1.weight`.
///
/// # Examples
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::{Device, Tensor};
/// use swiftbrush_checkpoint::{NamedVisitor, visit_named};
/// use swiftbrush_kernels::LinearConfig;
///
/// struct Names(Vec<String>);
///
/// impl NamedVisitor for Names {
///     fn float<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
///         self.0.push(format!("{name} {:?}", param.lazy_shape().to_vec()));
///     }
/// }
/// ```
pub fn visit_named<M: Module>(module: &M, visitor: &mut impl NamedVisitor) {
    module.visit(&mut Named {
        path: ModulePath::default(),
        inner: visitor,
    });
}

/// Maps every floating-point parameter together with its name; see [`visit_named`].
pub fn map_named<M: Module>(module: M, mapper: &mut impl NamedMapper) -> M {
    module.map(&mut Named {
        path: ModulePath::default(),
        inner: mapper,
    })
}

struct Named<'a, T> {
    path: ModulePath,
    inner: &'a mut T,
}

impl<T: NamedVisitor> ModuleVisitor for Named<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.inner.float(&self.path.name(), param);
    }
}

impl<T: NamedMapper> ModuleMapper for Named<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.inner.float(&self.path.name(), param)
    }
}

/// The position of a visitor or mapper in a module, under its name in checkpoints.
///
/// [`visit_named`] and [`map_named`] maintain one; a visitor that also needs integer parameters can maintain its own.
#[derive(Clone, Debug, Default)]
pub struct ModulePath(Vec<String>);

impl ModulePath {
    /// Call this in `enter_module`, with the same arguments.
    pub fn enter(&mut self, name: &str, container: &str) {
        if !is_variant(container) {
            self.0.push(name.to_owned());
        }
    }

    /// Call this in `exit_module`.
    pub fn exit(&mut self, container: &str) {
        if !is_variant(container) {
            self.0.pop();
        }
    }

    /// The name, such as `down_blocks.0.resnets.1.conv1.weight`.
    pub fn name(&self) -> String {
        self.0.join(".")
    }
}

fn is_variant(container: &str) -> bool {
    container.starts_with("Enum:")
}
