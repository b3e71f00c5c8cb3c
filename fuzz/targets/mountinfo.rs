//! Lines of the kernel's mount table.
#![no_main]

use countersign_driver::mountinfo::Mount;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    if let Some(mount) = Mount::parse(line) {
        let fields: Vec<_> = line.split(' ').collect();
        assert!(fields.len() >= 9, "a line with fewer fields than the table has: {line:?}");
        assert_eq!(fields[0].parse(), Ok(mount.id));
        // Without escapes nothing changes.
        if !line.contains('\\') {
            assert_eq!(mount.point, fields[4]);
            assert!(fields.windows(3).any(|w| w == ["-", &*mount.fs_type, &*mount.source]), "{line:?}");
        }
        assert!(
            mount.point.len() <= fields[4].len() * 3,
            "unescaping makes text shorter, or marks what is no UTF-8"
        );
    }
});
