//! Ranks started by `mpirun`, if the program was built with the feature `mpi`.

#[cfg(feature = "mpi")]
use anyhow::Context;
use anyhow::Result;
use swiftbrush_trainer::Distiller;

/// This rank among those that train together.
#[derive(Debug)]
pub(crate) struct Ranks {
    #[cfg(feature = "mpi")]
    communicator: swiftbrush_trainer::MpiCommunicator,
}

impl Ranks {
    #[cfg(not(feature = "mpi"))]
    pub(crate) fn start() -> Result<Self> {
        // Set by Open MPI and MPICH. Without MPI, all ranks would start the same run.
        for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"] {
            let size = std::env::var(variable).unwrap_or_default();
            anyhow::ensure!(
                matches!(size.as_str(), "" | "1"),
                "started as one of {size} ranks, but built without MPI; build with --features mpi"
            );
        }
        Ok(Self {})
    }

    #[cfg(feature = "mpi")]
    pub(crate) fn start() -> Result<Self> {
        let communicator = swiftbrush_trainer::MpiCommunicator::start();
        Ok(Self {
            communicator: communicator.context("cannot start MPI")?,
        })
    }

    /// The device of this rank: the r-th of the machine for its r-th rank, unless the name has an index.
    #[cfg(feature = "mpi")]
    pub(crate) fn device(&self, name: &str) -> String {
        match (name, self.communicator.local_rank()) {
            (_, 0) | ("flex", _) => name.to_owned(),
            (name, _) if name.contains(':') => name.to_owned(),
            (name, rank) => format!("{name}:{rank}"),
        }
    }

    #[cfg(not(feature = "mpi"))]
    pub(crate) fn device(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Index of this rank, the number of ranks, and that of ranks on the same machine.
    #[cfg(feature = "mpi")]
    pub(crate) fn numbers(&self) -> [usize; 3] {
        use swiftbrush_trainer::Communicator;
        let communicator = &self.communicator;
        [
            communicator.rank(),
            communicator.size(),
            communicator.local_size(),
        ]
    }

    #[cfg(not(feature = "mpi"))]
    pub(crate) fn numbers(&self) -> [usize; 3] {
        [0, 1, 1]
    }

    /// Adds the other ranks to a run.
    #[cfg(feature = "mpi")]
    pub(crate) fn join(self, distiller: Distiller) -> Result<Distiller> {
        let distiller = distiller.with_communicator(std::sync::Arc::new(self.communicator));
        let distiller = distiller?;
        Ok(distiller)
    }

    #[cfg(not(feature = "mpi"))]
    pub(crate) fn join(self, distiller: Distiller) -> Result<Distiller> {
        Ok(distiller)
    }
}
