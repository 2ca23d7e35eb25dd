#!/bin/sh
# Where were these photos taken? One line for each: file, status, latitude, longitude, 68 % radius in metres.
#
#   localize.sh photo.jpg…          SIGHTFIX_URL (http://127.0.0.1:8080), SIGHTFIX_API_KEY, SIGHTFIX_QUERY (top_k=1&…)
#
# Needs curl; with jq it prints the line above, without it the whole answer. curl tries again by itself when the server is
# overloaded or starting (429, 503) or not there yet, and waits as long as Retry-After says. Exit status: 0 if every photo
# was answered, 1 if one was not.
set -eu

url=${SIGHTFIX_URL:-http://127.0.0.1:8080}
if [ $# -eq 0 ]; then
  echo "usage: localize.sh PHOTO..." >&2
  exit 2
fi

answer=$(mktemp)
headers=$(mktemp)
trap 'rm -f "$answer" "$headers"' EXIT
chmod 600 "$headers"
# The key goes through a file: arguments are there for every user of the machine to read.
if [ -n "${SIGHTFIX_API_KEY:-}" ]; then
  printf 'Authorization: Bearer %s\n' "$SIGHTFIX_API_KEY" >"$headers"
fi

failed=0
for photo in "$@"; do
  case $photo in
    *.png | *.PNG) type=image/png ;;
    *.webp | *.WEBP) type=image/webp ;;
    *.heic | *.HEIC | *.heif | *.HEIF) type=image/heic ;;
    *) type=image/jpeg ;;
  esac
  if [ ! -r "$photo" ]; then
    echo "$photo: cannot be read" >&2
    failed=1
    continue
  fi
  # curl writes every attempt into the same file; only the last one stays.
  if status=$(curl --silent --show-error --output "$answer" --write-out '%{http_code}' \
    --retry 5 --retry-max-time 60 --retry-connrefused --connect-timeout 5 --max-time 60 \
    --header @"$headers" --header "Content-Type: $type" --header 'X-Lane: bulk' \
    --data-binary @"$photo" "$url/localize?${SIGHTFIX_QUERY:-top_k=1}") && [ "$status" = 200 ]; then
    if command -v jq >/dev/null 2>&1; then
      jq --raw-output --arg photo "$photo" \
        '[$photo, .status, .fix.lat // "-", .fix.lon // "-", .fix.radius_m // "-"] | @tsv' "$answer"
    else
      cat "$answer"
      echo
    fi
  else
    failed=1
    if command -v jq >/dev/null 2>&1 && reason=$(jq --raw-output '"\(.code): \(.detail)"' "$answer" 2>/dev/null); then
      echo "$photo: $reason" >&2
    else
      echo "$photo: no answer (HTTP ${status:-000})" >&2
    fi
  fi
done
exit "$failed"
