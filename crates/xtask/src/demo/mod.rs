use anyhow::{Result, bail};
pub(crate) fn run(_: &crate::arguments::Arguments) -> Result<()> {
    bail!("not yet")
}
