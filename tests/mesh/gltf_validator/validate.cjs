// node validate.cjs FILE...: prints a JSON object, the Khronos validator's issues of each file.
const fs = require('fs');
const path = require('path');
const validator = require('gltf-validator');

async function issues(file) {
  const beside = (uri) => fs.promises.readFile(path.join(path.dirname(file), decodeURIComponent(uri)));
  const report = await validator.validateBytes(new Uint8Array(fs.readFileSync(file)), {
    uri: path.basename(file),
    externalResourceFunction: async (uri) => new Uint8Array(await beside(uri)),
  });
  return report.issues;
}

async function main(files) {
  const found = {};
  for (const file of files) found[file] = await issues(file);
  process.stdout.write(JSON.stringify(found));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
