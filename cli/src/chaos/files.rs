//! Harm to the files of a run's store, which is a folder.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use polo_store::{Store, StoreError, checkpoint};

use super::Error;

/// A run's store as a folder.
pub struct StoreFolder {
    path: PathBuf,
    store: Store,
}

impl StoreFolder {
    /// The store in the folder `path`, which is made.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let store = Store::open(&path.to_string_lossy())?;
        Ok(Self { path: path.to_owned(), store })
    }

    /// Whether there is a checkpoint.
    pub fn has_checkpoint(&self) -> bool {
        fs::read_dir(self.path.join("checkpoints")).is_ok_and(|mut files| files.next().is_some())
    }

    /// Flips a bit in a chunk of the newest checkpoint; returns the checkpoint's step, or `None` if it is gone already.
    pub async fn damage_newest_checkpoint(&self, draw: u64) -> Result<Option<u64>, Error> {
        let Some(step) = checkpoint::list_steps(&self.store).await?.pop() else { return Ok(None) };
        let manifest = match checkpoint::read_manifest(&self.store, step).await {
            Ok(manifest) => manifest,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let digest = manifest.chunks[draw as usize % manifest.chunks.len()].digest;
        let path = self.chunks().join(digest.to_string());
        match flip_bit(&path, draw >> 32) {
            Ok(()) => Ok(Some(step)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::at(&path)(error)),
        }
    }

    /// Puts a file where the folder of chunks belongs: nothing can be read or written there, not even by root.
    pub fn break_chunks(&self) -> Result<(), Error> {
        let (chunks, away) = (self.chunks(), self.away());
        if chunks.exists() {
            fs::rename(&chunks, &away).map_err(Error::at(&chunks))?;
        }
        fs::write(&chunks, "in the way\n").map_err(Error::at(&chunks))
    }

    /// Undoes that.
    pub fn mend_chunks(&self) -> Result<(), Error> {
        let (chunks, away) = (self.chunks(), self.away());
        fs::remove_file(&chunks).map_err(Error::at(&chunks))?;
        if away.exists() {
            fs::rename(&away, &chunks).map_err(Error::at(&away))?;
        }
        Ok(())
    }

    fn chunks(&self) -> PathBuf {
        self.path.join("chunks")
    }

    fn away(&self) -> PathBuf {
        self.path.join("chunks.away")
    }
}

fn flip_bit(path: &Path, draw: u64) -> std::io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let position = draw % file.metadata()?.len().max(1);
    let mut byte = [0];
    file.seek(SeekFrom::Start(position))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(position))?;
    file.write_all(&[byte[0] ^ 1 << (draw % 8)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_store_can_neither_be_read_nor_written_until_it_is_mended() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = StoreFolder::open(folder.path()).expect("a store");
        let chunk = folder.path().join("chunks/one");
        fs::create_dir(folder.path().join("chunks")).expect("a folder");
        fs::write(&chunk, "whole").expect("written");
        store.break_chunks().expect("broken");
        assert!(fs::read(&chunk).is_err() && fs::write(&chunk, "new").is_err());
        assert!(fs::create_dir_all(folder.path().join("chunks")).is_err(), "whoever writes makes no new folder");
        store.mend_chunks().expect("mended");
        assert_eq!(fs::read_to_string(&chunk).expect("read"), "whole");
    }

    #[test]
    fn one_bit_flips() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("chunk");
        fs::write(&path, [0; 100]).expect("written");
        flip_bit(&path, 12_345).expect("flipped");
        let bytes = fs::read(&path).expect("read");
        assert_eq!((bytes.len(), bytes.iter().map(|byte| byte.count_ones()).sum::<u32>()), (100, 1));
    }
}
