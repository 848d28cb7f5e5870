//! What drivers read from the environment of the process, set before any of them is woken.
//!
//! Mesa lays a chooser of devices over Vulkan, which asks the desktop which GPU it would like. Where there is no desktop (a
//! server, a container) it says so on standard error, in a line that begins with `error:`. Adapters are chosen here, so
//! the chooser is switched off, by the variable that it has for this.

/// Mesa's own switch: `VkLayer_MESA_device_select.json` names it.
const NO_CHOOSER: &str = "NODEVICE_SELECT";

/// Sets the variables, unless the user did. To be called first, while the process has one thread.
pub(crate) fn prepare() {
    if cfg!(target_os = "linux") && std::env::var_os(NO_CHOOSER).is_none() {
        // SAFETY: nothing else runs in this process yet: this is called at the start of `main`, and no thread has been
        // started that could read or write the environment meanwhile.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(NO_CHOOSER, "1");
        }
    }
}
