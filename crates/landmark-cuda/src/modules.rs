//! Kernels that are loaded, and loading those that are not.

use crate::cache::Cache;
use crate::compile::{self, Arch, Defines};
use crate::driver::{Device, Module};
use landmark_core::Result;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

type Key = (&'static str, Defines);

/// Modules by file and definitions.
#[derive(Debug)]
pub(crate) struct Kernels {
    cache: Cache,
    loaded: Mutex<HashMap<Key, Arc<Module>>>,
}

impl Kernels {
    pub(crate) fn new(cache: Cache) -> Self {
        Kernels { cache, loaded: Mutex::default() }
    }

    fn find(&self, key: &Key) -> Option<Arc<Module>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Loads all of these that are not loaded, compiling in parallel what the cache lacks.
    pub(crate) fn load(&self, device: &Arc<Device>, wanted: &[Key]) -> Result<()> {
        let missing: Vec<Key> = wanted.iter().filter(|key| self.find(key).is_none()).cloned().collect();
        let cubins = compile::cubins(&missing, Arch(device.info.capability), &self.cache)?;
        for (key, cubin) in missing.into_iter().zip(cubins) {
            let module = Module::load(device, &cubin, key.0)?;
            self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(key, module);
        }
        Ok(())
    }

    /// One of them, loaded if need be.
    pub(crate) fn module(
        &self,
        device: &Arc<Device>,
        file: &'static str,
        defines: &Defines,
    ) -> Result<Arc<Module>> {
        let key = (file, defines.clone());
        if let Some(module) = self.find(&key) {
            return Ok(module);
        }
        let cubin = compile::cubin(file, defines, Arch(device.info.capability), &self.cache)?;
        let module = Module::load(device, &cubin, file)?;
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(key, module.clone());
        Ok(module)
    }
}
