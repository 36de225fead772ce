//! Shares and limits of block devices. Pure.
//!
//! Source: Linux `cgroup-v1/blkio-controller.rst`, `cgroup-v2.rst` ("IO Interface Files"), `block/bfq-iosched.rst`.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::limits::{CgroupError, Files};

impl Files<'_> {
    pub(super) fn block_io(&mut self, block_io: &LinuxBlockIo) -> Result<(), CgroupError> {
        let throttles: [(&'static str, &str, &str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
            ("blockIO.throttleReadBpsDevice", "read_bps", "rbps", block_io.throttle_read_bps_device()),
            ("blockIO.throttleWriteBpsDevice", "write_bps", "wbps", block_io.throttle_write_bps_device()),
            ("blockIO.throttleReadIOPSDevice", "read_iops", "riops", block_io.throttle_read_iops_device()),
            ("blockIO.throttleWriteIOPSDevice", "write_iops", "wiops", block_io.throttle_write_iops_device()),
        ];
        let weight = block_io.weight().filter(|weight| *weight != 0);
        let leaf = block_io.leaf_weight().filter(|weight| *weight != 0).is_some();
        let devices = block_io.weight_device().as_deref().unwrap_or_default();
        if leaf || devices.iter().any(|device| device.leaf_weight().is_some_and(|weight| weight != 0)) {
            let reason = "it belongs to the CFQ scheduler, which kernels do not have any more";
            return Err(CgroupError::NotSupported { name: "blockIO.leafWeight", reason });
        }
        if let Some(weight) = weight {
            let (file, value) = if self.is_v2("blockIO.weight", "blkio")? {
                ("io.bfq.weight", weight.to_string())
            } else {
                ("blkio.bfq.weight", weight.to_string())
            };
            self.write("blockIO.weight", "blkio", file, value)?;
        }
        for device in devices {
            let Some(weight) = device.weight().filter(|weight| *weight != 0) else { continue };
            let name = "blockIO.weightDevice";
            let file = if self.is_v2(name, "blkio")? { "io.bfq.weight" } else { "blkio.bfq.weight_device" };
            self.write(name, "blkio", file, format!("{}:{} {weight}", device.major(), device.minor()))?;
        }
        for (name, v1, v2, list) in throttles {
            for device in list.iter().flatten() {
                let (number, rate) = (format!("{}:{}", device.major(), device.minor()), device.rate());
                if self.is_v2(name, "blkio")? {
                    // Zero takes a limit away on v1.
                    let rate = if rate == 0 { "max".to_owned() } else { rate.to_string() };
                    self.write(name, "blkio", "io.max", format!("{number} {v2}={rate}"))?;
                } else {
                    self.write(
                        name,
                        "blkio",
                        &format!("blkio.throttle.{v1}_device"),
                        format!("{number} {rate}"),
                    )?;
                }
            }
        }
        Ok(())
    }
}
