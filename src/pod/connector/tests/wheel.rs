//! Python packages: a wheel is a zip archive with a few metadata files.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// A package for the index.
#[derive(Clone, Copy)]
pub struct Wheel<'a> {
    pub name: &'a str,
    /// `>=3.12`
    pub python: Option<&'a str>,
    pub requires: &'a [&'a str],
    pub scripts: &'a [&'a str],
}

impl Wheel<'_> {
    /// Writes version 1 of the package. Its commands print their name and arguments.
    pub fn write(&self, directory: &Path) {
        let module = self.name.replace('-', "_");
        let info = format!("{module}-1.dist-info");
        let code = "import sys\n\ndef run():\n    print(sys.argv[0].split('/')[-1], *sys.argv[1:])\n";
        let mut metadata = format!("Metadata-Version: 2.1\nName: {}\nVersion: 1\n", self.name);
        metadata.extend(self.python.map(|python| format!("Requires-Python: {python}\n")));
        metadata.extend(self.requires.iter().map(|other| format!("Requires-Dist: {other}\n")));
        let mut scripts = "[console_scripts]\n".to_owned();
        scripts.extend(self.scripts.iter().map(|script| format!("{script} = {module}:run\n")));
        let files = [
            (format!("{module}.py"), code.to_owned()),
            (format!("{info}/METADATA"), metadata),
            (format!("{info}/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_owned()),
            (format!("{info}/entry_points.txt"), scripts),
            (format!("{info}/RECORD"), String::new()),
        ];
        let file = File::create(directory.join(format!("{module}-1-py3-none-any.whl"))).expect("a file");
        zip(file, &files).expect("an archive");
    }
}

/// Writes an archive without compression.
fn zip(mut to: File, files: &[(String, String)]) -> std::io::Result<()> {
    let mut directory = Vec::new();
    let mut offset = 0u32;
    for (name, content) in files {
        let mut crc = flate2::Crc::new();
        crc.update(content.as_bytes());
        let length = u32::try_from(content.len()).expect("a small file");
        let name_length = u16::try_from(name.len()).expect("a short name");
        // Version, flags, method, time, date; then checksum and sizes.
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        for number in [crc.sum(), length, length] {
            common.extend(number.to_le_bytes());
        }
        common.extend(name_length.to_le_bytes());
        common.extend([0, 0]);
        let local = [b"PK\x03\x04".as_slice(), &common, name.as_bytes(), content.as_bytes()].concat();
        to.write_all(&local)?;
        directory.extend([b"PK\x01\x02".as_slice(), &[20, 0], &common, &[0; 10]].concat());
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
        offset += u32::try_from(local.len()).expect("a small file");
    }
    to.write_all(&directory)?;
    let count = u16::try_from(files.len()).expect("few files").to_le_bytes();
    let size = u32::try_from(directory.len()).expect("few files").to_le_bytes();
    to.write_all(&[b"PK\x05\x06\0\0\0\0".as_slice(), &count, &count, &size, &offset.to_le_bytes(), &[0, 0]].concat())
}
